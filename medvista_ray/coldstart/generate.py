"""Run planned actions through the real env: the same stream, images and tools as a rollout, without an engine.

A plan is played by a scripted policy client, so a cold-start trajectory cannot differ in form from what is trained
later. The filter keeps what the env found well-formed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from medvista_ray.coldstart.expert import plan_answer_only, plan_expert
from medvista_ray.errors import ConfigError, DataError
from medvista_ray.rendering.renderer import QwenRenderer
from medvista_ray.rollout.env_factory import EnvFactory
from medvista_ray.rollout.episode import EpisodeKey, EpisodeRunner, EpisodeSettings
from medvista_ray.types.protocols import TaskRecord, TaskSource
from medvista_ray.types.sampling import GenerateRequest, GenerateResult
from medvista_ray.types.trajectories import StopReason, Trajectory, VersionSpan, format_group_id

Planner = Callable[[TaskRecord, np.random.Generator], tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)  # asyncio.run writes the repr of its result
class ColdStartData:
    """Well-formed trajectories and the bytes of the images they show."""

    trajectories: list[Trajectory]
    images: dict[str, bytes]
    num_dropped: int
    fault: str | None = None  # what broke the first broken episode


class PlannedClient:
    """A policy client that plays a plan; its logprobs are 0.0 and its policy version is 0."""

    def __init__(self, renderer: QwenRenderer) -> None:
        self._renderer = renderer
        self._plans: dict[str, tuple[str, ...]] = {}

    def set_plan(self, group_id: str, actions: tuple[str, ...]) -> None:
        """Give the actions of one episode."""
        self._plans = {group_id: actions}

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        """Return the planned action of this turn; `DataError` past the end of the plan, or past the token limit."""
        actions = self._plans[request.group_id]
        if request.turn_index >= len(actions):
            raise DataError(f"the plan of {len(actions)} actions was not enough: the env asked for another")
        token_ids = self._renderer.encode_action(actions[request.turn_index])
        if len(token_ids) > request.max_new_tokens:
            raise DataError(f"a planned action has {len(token_ids)} tokens, env.max_action_tokens is lower")
        return GenerateResult(
            token_ids=token_ids,
            logprobs=np.zeros(len(token_ids), np.float32),
            version_spans=(VersionSpan(policy_version=0, start=0, end=len(token_ids)),),
            prompt_length=len(request.token_ids),
            stopped=True,
        )


class _ShownImages:
    """A blob store that keeps what observations show: views, not sources."""

    def __init__(self) -> None:
        self.images: dict[str, bytes] = {}

    async def put_if_absent(self, digest: str, data: bytes) -> None:
        """Keep bytes."""
        self.images.setdefault(digest, data)

    async def get_many(self, digests: Sequence[str]) -> list[bytes]:
        """Return bytes."""
        return [self.images[digest] for digest in digests]


def make_expert_planner(*, right_share: float, second_look_share: float) -> Planner:
    """Plan with the scripted expert."""
    return lambda record, rng: plan_expert(
        record.task, record.reference, right_share=right_share, second_look_share=second_look_share, rng=rng
    )


def load_planner(target: str) -> Planner:
    """Import `pkg.module:function` as a planner; `ConfigError` names the key when there is none."""
    module_name, _, name = target.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"coldstart.expert={target!r}: cannot import {module_name!r}: {error}") from error
    if not callable(found):
        raise ConfigError(f"coldstart.expert={target!r}: {module_name} has no function {name!r}")
    planner: Planner = found
    return planner


def make_answer_planner() -> Planner:
    """Plan the bare right answer."""
    return lambda record, rng: plan_answer_only(record.task, record.reference)


async def generate_cold_start(
    tasks: TaskSource,
    *,
    planner: Planner,
    factory: EnvFactory,
    renderer: QwenRenderer,
    settings: EpisodeSettings,
    indices: range,
    seed: int,
) -> ColdStartData:
    """Play the episodes of `indices`, each over its task, and keep the well-formed ones."""
    client = PlannedClient(renderer)
    shown = _ShownImages()
    runner = EpisodeRunner(renderer=renderer, client=client, blobs=shown, settings=settings)
    kept: list[Trajectory] = []
    fault: str | None = None
    for index in indices:
        record = tasks[index % len(tasks)]
        group_id = format_group_id(0, index, 0)
        client.set_plan(group_id, planner(record, np.random.default_rng((seed, index))))
        for data in record.blobs.values():
            factory.cache.put(data)
        trajectory = await runner.run(
            factory.make(), record.task, record.reference, EpisodeKey(group_id=group_id, member=0)
        )
        fault = fault or trajectory.error
        if is_well_formed(trajectory):
            kept.append(trajectory)
    digests = {span.digest for trajectory in kept for span in trajectory.image_spans}
    images = {digest: shown.images[digest] for digest in digests}
    return ColdStartData(trajectories=kept, images=images, num_dropped=len(indices) - len(kept), fault=fault)


def join_cold_start(parts: Sequence[ColdStartData]) -> ColdStartData:
    """Join parts in order; `DataError` when no trajectory is left."""
    trajectories = [trajectory for part in parts for trajectory in part.trajectories]
    if not trajectories:
        fault = next((part.fault for part in parts if part.fault is not None), None)
        reason = "look at env.tools and env.max_turns" if fault is None else fault
        raise DataError(f"coldstart: no trajectory is well-formed; {reason}")
    images = {digest: data for part in parts for digest, data in part.images.items()}
    return ColdStartData(trajectories=trajectories, images=images, num_dropped=sum(part.num_dropped for part in parts))


def is_well_formed(trajectory: Trajectory) -> bool:
    """Keep live trajectories whose every turn the env found well-formed and whose calls all worked."""
    failed = any(turn.tool_failure is not None for turn in trajectory.turns)
    has_form = trajectory.reward_breakdown.get("format", 1.0) > 0  # an env may have no such level
    return trajectory.is_live and not failed and has_form and trajectory.stop_reason is StopReason.ANSWERED


def keep_well_formed(trajectories: Sequence[Trajectory]) -> Iterator[Trajectory]:
    """Filter recorded trajectories of a teacher; a wrong answer goes too, where the reward says so."""
    return (
        trajectory
        for trajectory in trajectories
        if is_well_formed(trajectory) and trajectory.reward_breakdown.get("correct", 1.0) > 0
    )
