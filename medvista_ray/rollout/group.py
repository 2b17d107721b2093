"""Run one group: all members of one task side by side -> a trajectory group and its receipt. Knows no buffer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

from medvista_ray.errors import MedVistaError
from medvista_ray.images.store import MemoryBlobCache
from medvista_ray.rollout.episode import EpisodeKey, EpisodeRunner
from medvista_ray.types.delivery import CommitResult, GroupWork, Receipt
from medvista_ray.types.protocols import BlobStore
from medvista_ray.types.trajectories import Trajectory, TrajectoryGroup

_log = logging.getLogger(__name__)
EnvFactory = Callable[[], Any]


class EpisodeCount:
    """Counts live episodes, so that a lock-step engine knows when every one of them waits."""

    def __init__(self) -> None:
        self._live = 0

    def __call__(self) -> int:
        """Return the number of live episodes."""
        return self._live

    def add(self, count: int) -> None:
        """Count episodes that begin (or, with a negative count, end)."""
        self._live += count


async def run_group(
    work: GroupWork,
    *,
    runner: EpisodeRunner,
    make_env: EnvFactory,
    blobs: BlobStore,
    cache: MemoryBlobCache,
    live: EpisodeCount,
    on_episode_end: Callable[[], None] = lambda: None,
) -> TrajectoryGroup:
    """Run every member; `EngineDiedError` when the engines are gone.

    `live` counts the members from the first moment on; `on_episode_end` is called whenever it falls.
    """
    live.add(work.group_size)
    remaining = work.group_size

    def ended() -> None:
        nonlocal remaining
        remaining -= 1
        live.add(-1)
        on_episode_end()

    async def run_member(member: int) -> Trajectory:
        env = make_env()
        key = EpisodeKey(group_id=work.group_id, member=member, attempt=work.attempt)
        try:
            return await runner.run(env, work.task, work.reference, key)
        finally:
            _close(env)
            ended()

    try:
        missing = cache.missing(work.task.digests)
        for data in await blobs.get_many(missing):
            cache.put(data)
        async with asyncio.TaskGroup() as members:
            tasks = [
                members.create_task(run_member(member), name=f"{work.group_id}:{member}")
                for member in range(work.group_size)
            ]
    except* MedVistaError as failed:
        raise failed.exceptions[0] from None
    finally:
        live.add(-remaining)  # members that never began
    return TrajectoryGroup(
        group_id=work.group_id,
        attempt=work.attempt,
        incarnation=work.incarnation,
        task=work.task,
        trajectories=tuple(task.result() for task in tasks),
    )


def _close(env: Any) -> None:
    try:
        env.close()
    except Exception as error:  # noqa: BLE001 - its episode is over: what it raises now must not take the group with it
        _log.warning("an env could not be closed: %s", type(error).__name__)


def make_receipt(group: TrajectoryGroup, result: CommitResult) -> Receipt:
    """Sum a group up for the driver: ids, state and sizes."""
    members = group.trajectories
    return Receipt(
        group_id=group.group_id,
        attempt=group.attempt,
        result=result,
        family=group.task.family,
        rewards=tuple(member.reward for member in group.live),
        num_broken=len(members) - len(group.live),
        num_tokens=sum(len(member.token_ids) for member in members),
        num_action_tokens=sum(member.num_action_tokens for member in members),
        metrics=_means(group),
    )


def _means(group: TrajectoryGroup) -> Mapping[str, float]:
    if not group.live:
        return {}
    live = group.live
    calls = [sum(turn.tool_call is not None for turn in member.turns) for member in live]
    names = sorted({name for member in live for name in member.reward_breakdown})
    means = {
        "rollout/turns/mean": fmean(len(member.turns) for member in live),
        "rollout/calls/mean": fmean(calls),
        "rollout/action_tokens/mean": fmean(member.num_action_tokens for member in live),
        f"rollout/reward_{group.task.family}/mean": fmean(member.reward for member in live),
        "rollout/truncated/mean": fmean(member.stop_reason.is_truncated for member in live),
    }
    for name in names:
        means[f"reward/{name}/mean"] = fmean(member.reward_breakdown.get(name, 0.0) for member in live)
    return means
