"""A stricter check than Gymnasium's, for any env of this protocol: what rollouts and rewards rely on.

A pure function from a way to make an env to a list of problems; knows no data set and no tool.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded

from medvista_ray.errors import MedVistaError
from medvista_ray.images.codec import decode
from medvista_ray.types.trajectories import StopReason

ANSWER = "<think>x</think><answer>?</answer>"
CALL_OF_NOTHING = '<think>x</think><tool_call>{"name":"no_such_tool","arguments":{}}</tool_call>'
BAD_CALL = "<think>x</think><tool_call>{</tool_call>"
HOSTILE_ACTIONS = (
    "",
    "\x00",
    "\U0001d538 \u00fc \u2603 \u202e",
    "<think>",
    "<answer></answer>" * 99,
    "\ud800",
    "x" * 100_000,
)
MAX_ACTIONS = 1000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Step:
    observation: dict[str, Any]
    reward: float
    is_terminated: bool
    is_truncated: bool
    info: dict[str, Any]


def check_episodes(make_env: Callable[[], Any], *, seeds: Sequence[int] = (0, 1)) -> list[str]:
    """Play scripted episodes and return what is wrong with the env, one line each; empty when nothing is."""
    problems: list[str] = []
    for seed in seeds:
        for actions in (
            (ANSWER,),
            (BAD_CALL, CALL_OF_NOTHING, ANSWER),
            (CALL_OF_NOTHING,) * MAX_ACTIONS,
            *((action,) for action in HOSTILE_ACTIONS),
        ):
            problems.extend(f"seed {seed}: {problem}" for problem in _check_episode(make_env, actions, seed))
    return list(dict.fromkeys(problems))


def _check_episode(make_env: Callable[[], Any], actions: Sequence[str], seed: int) -> list[str]:
    env, twin = make_env(), make_env()
    try:
        problems, steps = _play(env, actions, seed)
        _, again = _play(twin, actions, seed)
        problems += _check_steps(env, steps, actions)
        if [_freeze(step) for step in steps] != [_freeze(step) for step in again]:
            problems.append("the same seed and actions gave two different episodes")
        return problems
    finally:
        env.close()
        twin.close()


def _play(env: Any, actions: Sequence[str], seed: int) -> tuple[list[str], list[_Step]]:
    observation, info = env.reset(seed=seed)
    steps = [_Step(observation=observation, reward=0.0, is_terminated=False, is_truncated=False, info=info)]
    problems = _check_observation(env, observation)
    for action in actions:
        observation, reward, is_terminated, is_truncated, info = env.step(action)
        steps.append(
            _Step(
                observation=observation,
                reward=reward,
                is_terminated=is_terminated,
                is_truncated=is_truncated,
                info=info,
            )
        )
        if is_terminated or is_truncated:
            break
        problems += _check_observation(env, observation)
    return problems, steps


def _check_observation(env: Any, observation: Any) -> list[str]:
    if not env.observation_space.contains(observation):
        return ["an observation is not in the observation space"]
    try:
        rows = json.loads(observation["messages"])
        texts = [[part["text"] for part in row["parts"] if part["type"] == "text"] for row in rows]
        sizes = [(part["height"], part["width"], 3) for row in rows for part in row["parts"] if part["type"] == "image"]
        roles = [row["role"] for row in rows]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        return [f"messages is not a JSON list of role and parts: {type(error).__name__}: {error}"]
    problems = []
    if sizes != [image.shape for image in observation["images"]]:
        problems.append("the image parts of messages are not the images of the observation")
    records = env.unwrapped.observe()
    if roles != [message.role for message in records] or ["".join(text) for text in texts] != [
        message.text for message in records
    ]:
        problems.append("observe() does not give the messages of the observation")
    return problems + _check_images(env, records, observation["images"])


def _check_images(env: Any, records: Any, images: Sequence[np.ndarray]) -> list[str]:
    refs = [image for message in records for image in message.images]
    if len(refs) != len(images):
        return ["observe() has another number of images than the observation"]
    for ref, pixels in zip(refs, images, strict=True):
        try:
            shown = decode(env.unwrapped.blobs.get(ref.digest), ref.mime)
        except MedVistaError as error:
            return [f"a shown image cannot be read from blobs: {error}"]
        if not np.array_equal(shown, pixels):
            return ["the bytes in blobs are not the pixels of the observation"]
    return []


def _check_steps(env: Any, steps: Sequence[_Step], actions: Sequence[str]) -> list[str]:
    problems, last = [], steps[-1]
    if any(step.reward != 0.0 for step in steps[:-1]):
        problems.append("a reward before the end")
    if not (last.is_terminated or last.is_truncated):
        return [*problems, f"no end after {len(steps) - 1} actions"]
    if not math.isfinite(last.reward):
        problems.append(f"the reward is {last.reward}")
    if last.info.get("stop_reason") not in set(StopReason):
        problems.append(f"info['stop_reason'] is {last.info.get('stop_reason')!r} at the end")
    if not math.isclose(sum(last.info.get("reward_breakdown", {}).values()), last.reward, abs_tol=1e-9):
        problems.append("info['reward_breakdown'] does not sum to the reward")
    if last.info.get("stop_reason") == StopReason.ANSWERED and "correct" not in last.info.get("reward_breakdown", {}):
        problems.append("info['reward_breakdown'] has no part 'correct', which evaluation counts")
    if len(steps) - 1 < len(actions) and actions[len(steps) - 2] in (BAD_CALL,):
        problems.append("a bad call ended the episode")
    try:
        env.step(ANSWER)
    except ResetNeeded:
        return problems
    return [*problems, "a step after the end did not raise gymnasium.error.ResetNeeded"]


def _freeze(step: _Step) -> tuple[bytes, ...]:
    """Turn a step into comparable bytes."""
    images = io.BytesIO()
    for image in step.observation["images"]:
        images.write(repr(image.shape).encode() + image.tobytes())
    return (
        step.observation["messages"].encode("utf-8", "surrogatepass"),
        images.getvalue(),
        repr((step.reward, step.is_terminated, step.is_truncated, step.info)).encode("utf-8", "surrogatepass"),
    )
