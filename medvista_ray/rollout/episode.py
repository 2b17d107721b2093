"""Run one episode: an env, a renderer, a policy client -> a trajectory. Owns no tasks; the caller cancels it.

Every image of an observation is in the blob store before the turn that shows it is sampled, so every digest of a
committed group resolves. Whatever goes wrong inside an episode makes a *broken* member, with its reason; the run goes
on.

An env needs the Gymnasium surface and, on `unwrapped`, `observe()` and `blobs`. Two more methods are used where they
are: `step_async`, so that no thread waits for a tool, and `stop`, which scores an episode that a limit ended. A wrapper
or a subclass that overrides `step` alone means its `step`: it is called, in a thread.
"""

from __future__ import annotations

import asyncio
import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medvista_ray.errors import EngineDiedError, MedVistaError, RenderError
from medvista_ray.rendering.renderer import QwenRenderer, RenderedTokens
from medvista_ray.rollout.stream import TokenStream
from medvista_ray.types.messages import Message, Reference, Task
from medvista_ray.types.protocols import BlobStore, PolicyClient
from medvista_ray.types.sampling import GenerateRequest, SamplingSpec
from medvista_ray.types.trajectories import StopReason, Trajectory, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeSettings:
    """Limits and sampling of every episode of a run."""

    max_action_tokens: int
    max_context_tokens: int
    timeout_s: float
    temperature: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeKey:
    """Which member of which group this is; with the seed it keys every draw."""

    group_id: str
    member: int
    attempt: int = 0


class EpisodeRunner:
    """Runs episodes one after another or side by side; holds what they share."""

    def __init__(
        self,
        *,
        renderer: QwenRenderer,
        client: PolicyClient,
        blobs: BlobStore,
        settings: EpisodeSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._renderer = renderer
        self._client = client
        self._blobs = blobs
        self._settings = settings
        self._clock = clock
        self._sampling = SamplingSpec(
            temperature=settings.temperature,
            banned_token_ids=renderer.banned_token_ids,
            stop_token_ids=renderer.stop_token_ids,
        )

    async def run(self, env: Any, task: Task, reference: Reference, key: EpisodeKey) -> Trajectory:
        """Run one episode to its end; never raises for what happens inside it."""
        episode = _Episode(task=task, key=key)
        try:
            await self._run(env, episode, reference)
            episode.stream.check(
                image_token_id=self._renderer.image_token_id, banned_token_ids=self._renderer.banned_token_ids
            )
            return episode.trajectory()
        except EngineDiedError:
            raise  # an infrastructure failure: the group is issued again, the member is not to blame
        except MedVistaError as error:
            return episode.broken(error)
        except Exception as error:  # noqa: BLE001 - an env author's fault must not take the shard with it
            return episode.broken(error)

    async def _run(self, env: Any, episode: _Episode, reference: Reference) -> None:
        deadline = self._clock() + self._settings.timeout_s
        key = episode.key
        env.reset(
            options={
                "task": episode.task,
                "reference": reference,
                "trajectory_id": f"{key.group_id}:{key.member}",
                "attempt": key.attempt,
            }
        )
        source = env.unwrapped
        messages: tuple[Message, ...] = source.observe()
        rendered = self._renderer.render_prompt(messages)
        if not self._fits(episode.stream, rendered):
            raise RenderError(f"the first prompt of {len(rendered.token_ids)} tokens leaves no room for an action")
        while True:
            await self._put_images(source, messages)
            episode.stream.append_observation(rendered)
            result = await self._client.generate(self._request(episode))
            start, end = episode.stream.append_action(result)
            action = self._renderer.decode_action(result.token_ids)
            _, reward, terminated, truncated, info = await _step(env, action)
            episode.add_reward(reward)
            turn = Turn(
                turn_index=len(episode.turns),
                messages=messages,
                action_start=start,
                action_end=end,
                action=action,
                tool_call=info.get("tool_call"),
                tool_failure=info.get("tool_failure"),
            )
            episode.turns.append(turn)
            if terminated or truncated:
                ended = StopReason.ANSWERED if terminated else StopReason.TURN_LIMIT
                stop = StopReason(info.get("stop_reason") or ended)
                cut_off = stop is StopReason.MALFORMED and not result.stopped
                episode.end(StopReason.ACTION_LENGTH if cut_off else stop, breakdown=info.get("reward_breakdown") or {})
                return
            messages = source.observe()
            rendered = self._renderer.render_observation(messages, action_has_stop=result.stopped)
            if not self._fits(episode.stream, rendered):
                episode.end_by_limit(source, StopReason.CONTEXT_LENGTH)
                return
            if self._clock() >= deadline:
                episode.end_by_limit(source, StopReason.DEADLINE)
                return

    def _fits(self, stream: TokenStream, rendered: RenderedTokens) -> bool:
        """Return whether an observation and an action after it stay within the context."""
        needed = len(stream) + len(rendered.token_ids) + self._settings.max_action_tokens
        return needed <= self._settings.max_context_tokens

    def _request(self, episode: _Episode) -> GenerateRequest:
        return GenerateRequest(
            group_id=episode.key.group_id,
            member=episode.key.member,
            turn_index=len(episode.turns),
            token_ids=episode.stream.token_ids(),
            image_spans=episode.stream.image_spans,
            max_new_tokens=self._settings.max_action_tokens,
            sampling=self._sampling,
            seed=self._settings.seed,
        )

    async def _put_images(self, source: Any, messages: Sequence[Message]) -> None:
        for image in (image for message in messages for image in message.images):
            await self._blobs.put_if_absent(image.digest, source.blobs.get(image.digest))


async def _step(env: Any, action: str) -> Any:
    """Take an action without holding the event loop."""
    if _prefers_async(type(env)):
        return await env.step_async(action)
    return await asyncio.to_thread(env.step, action)


def _prefers_async(kind: type) -> bool:
    """Return whether no class nearer than the one with `step_async` has a `step` of its own."""
    nearest = next((base for base in kind.__mro__ if "step" in vars(base) or "step_async" in vars(base)), None)
    return nearest is not None and "step_async" in vars(nearest)


def _describe_fault(error: Exception) -> str:
    """Say what broke a member; foreign errors by type and place, for their text may quote what only rewards may see."""
    name = type(error).__name__
    if isinstance(error, MedVistaError):
        return f"{name}: {error}"[:500]
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return name
    place = frames[-1]
    return f"{name} at {Path(place.filename).name}:{place.lineno} in {place.name}"


class _Episode:
    """What is known of an episode so far."""

    def __init__(self, *, task: Task, key: EpisodeKey) -> None:
        self.task = task
        self.key = key
        self.stream = TokenStream()
        self.turns: list[Turn] = []
        self._stop = StopReason.BROKEN
        self._reward = 0.0
        self._breakdown: dict[str, float] = {}

    def add_reward(self, reward: float) -> None:
        """Sum what the env pays; `ValueError` for what would make every advantage of the group NaN."""
        if not math.isfinite(reward):
            raise ValueError(f"the env gave a reward of {reward}")
        self._reward += float(reward)

    def end(self, stop: StopReason, *, breakdown: Mapping[str, float]) -> None:
        self._stop, self._breakdown = stop, dict(breakdown)

    def end_by_limit(self, source: Any, stop: StopReason) -> None:
        """Let the env score what there is; one without `stop` has paid all that it will."""
        if not hasattr(source, "stop"):
            self.end(stop, breakdown={})
            return
        score = source.stop()
        self.add_reward(score.reward)
        self.end(stop, breakdown=score.breakdown)

    def trajectory(self) -> Trajectory:
        return Trajectory(
            group_id=self.key.group_id,
            member=self.key.member,
            task_id=self.task.task_id,
            token_ids=self.stream.token_ids(),
            loss_mask=self.stream.loss_mask(),
            logprobs=self.stream.logprobs(),
            image_spans=self.stream.image_spans,
            version_spans=self.stream.version_spans,
            turns=tuple(self.turns),
            stop_reason=self._stop,
            reward=self._reward,
            reward_breakdown=self._breakdown,
        )

    def broken(self, error: Exception) -> Trajectory:
        """Return what there is, marked as broken, with what happened."""
        fault = _describe_fault(error)
        return replace(self.trajectory(), stop_reason=StopReason.BROKEN, reward=0.0, reward_breakdown={}, error=fault)
