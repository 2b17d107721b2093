"""`medvista check-env`: everything that rollouts, rewards and evaluation rely on, for anybody's env.

Each check takes a `Subject` and returns problems, one line each. Knows no config file, no run and no policy.

No label may leave an env. Two ways to see: every byte that comes out is searched for the canaries of a planted
reference, and an episode played under two different references must look the same until its reward.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env as check_with_gymnasium

from medvista_ray.envs.canary import find_leaks, make_canary_reference, needles_of
from medvista_ray.envs.check_tools import HANG_SPEC, example_arguments
from medvista_ray.envs.checker import ANSWER, BAD_CALL, CALL_OF_NOTHING, check_episodes
from medvista_ray.types.messages import Reference
from medvista_ray.types.protocols import TaskRecord, TaskSource

HANG_TIMEOUT_S = 1.0
_START_S = 30.0  # a worker's start-up does not count towards a deadline
_NUM_RECORDS = 3
_MAX_GROWTH = 1.02
_REWARD_KEYS = {"reward_breakdown", "is_valid_answer", "episode"}


class MakeEnv(Protocol):
    """Makes the env under test, as a rollout does."""

    def __call__(self, *, tools: Sequence[str] | None = None, tool_timeout_s: float | None = None) -> Any:
        """Make an env with these tools, None = those of the config."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """The env under test."""

    make: MakeEnv
    tasks: TaskSource  # what rollouts would give it
    tool_schemas: Mapping[str, Mapping[str, Any]]  # of the tools that are offered, by name
    tools: tuple[str, ...]  # their specs
    step_timeout_s: float
    num_episodes: int = 300  # of the memory check


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What one check found."""

    name: str
    problems: tuple[str, ...]
    wall_s: float

    @property
    def holds(self) -> bool:
        """Return whether nothing was found."""
        return not self.problems


def check_env(subject: Subject) -> Iterator[CheckResult]:
    """Run every check, in order; an exception of the env is a problem of the check it came up in."""
    for name, check in CHECKS.items():
        started = time.perf_counter()
        try:
            problems = check(subject)
        except Exception as error:  # noqa: BLE001  -- somebody else's env may raise anything
            problems = [_describe(error)]
        yield CheckResult(name=name, problems=tuple(problems), wall_s=time.perf_counter() - started)


def _check_gymnasium(subject: Subject) -> list[str]:
    """Return what Gymnasium's own checker says; it checks an env without wrappers."""
    with _made(subject) as env, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_with_gymnasium(env.unwrapped, skip_render_check=True)
    ours = ("not within the observation space", "is not deterministic", "deprecat")
    return [str(warning.message) for warning in caught if any(text in str(warning.message) for text in ours)]


def _check_scripted_episodes(subject: Subject) -> list[str]:
    return check_episodes(subject.make)


def _check_given_tasks(subject: Subject) -> list[str]:
    """Play tasks that are handed over in `reset(options=…)`, as rollouts do; the same twice."""
    problems: list[str] = []
    for record in _records(subject):
        first, second = (_play(subject, record, record.reference) for _ in range(2))
        if first.seen != second.seen or first.rewards != second.rewards:
            problems.append(f"task {record.task.task_id}: the same task and actions gave two different episodes")
        if first.slowest_s > subject.step_timeout_s:
            problems.append(f"task {record.task.task_id}: a step took {first.slowest_s:.1f} s")
    return problems


def _check_no_label(subject: Subject) -> list[str]:
    problems: list[str] = []
    for record in _records(subject):
        name, planted = record.task.task_id, _plant(record)
        real, other = _play(subject, record, record.reference), _play(subject, record, planted)
        secret = replace(planted, answer="") if record.task.choices else planted  # the choices are no secret
        for needle in find_leaks(other.pieces, needles_of(secret)):
            problems.append(f"task {name}: the reference came out: {needle[:40]!r}")
        if real.seen != other.seen:
            problems.append(f"task {name}: what the policy sees depends on the reference")
    return problems


def _check_deadline(subject: Subject) -> list[str]:
    """Call a tool that hangs; an env that runs no tools of ours has nothing to show here."""
    before = _children()
    with _made(subject, tools=(*subject.tools, HANG_SPEC), tool_timeout_s=HANG_TIMEOUT_S) as env:
        _reset(env, next(iter(_records(subject))))
        started = time.perf_counter()
        observation, *_ = env.step(_write_call("hang", {}))
        wall_s = time.perf_counter() - started
    if wall_s > HANG_TIMEOUT_S + _START_S:
        return [f"a hung tool held step() for {wall_s:.1f} s, its deadline is {HANG_TIMEOUT_S:g} s"]
    if "no tool" not in observation["messages"] and "timed_out" not in observation["messages"]:
        return [f"the time-out of a hung tool is not in the observation: {observation['messages'][:120]}"]
    return [f"process {pid} outlived close()" for pid in _children() - before]


def _check_close(subject: Subject) -> list[str]:
    before = _children()
    fresh, running = subject.make(), subject.make()
    fresh.close()
    fresh.close()
    _reset(running, next(iter(_records(subject))))
    running.close()
    running.close()
    return [f"process {pid} outlived close()" for pid in _children() - before]


def _check_memory(subject: Subject) -> list[str]:
    """Play many episodes; the resident memory after the first third is what counts."""
    records, actions = _records(subject), (CALL_OF_NOTHING, ANSWER)
    base = 0
    with _made(subject) as env:
        for number in range(subject.num_episodes):
            if number == subject.num_episodes // 3:
                base = _resident_bytes()
            _reset(env, records[number % len(records)])
            for action in actions:
                if any(env.step(action)[2:4]):
                    break
        grown = _resident_bytes() / base if base else 1.0
    return [f"memory grew to {grown:.3f} of what it was, over {subject.num_episodes} episodes"] * (grown > _MAX_GROWTH)


def _check_vector(subject: Subject) -> list[str]:
    """Play two copies side by side, and each alone: the same episodes."""
    vector = gymnasium.vector.SyncVectorEnv([subject.make, subject.make])
    alone = [subject.make(), subject.make()]
    try:
        observations, _ = vector.reset(seed=[3, 4])
        for place, env in enumerate(alone):
            observation, _ = env.reset(seed=3 + place)
            if observations["messages"][place] != observation["messages"]:
                return ["a vectorised env gives another first observation than one alone"]
        _, rewards, *_ = vector.step((ANSWER, ANSWER))
        singles = [float(env.step(ANSWER)[1]) for env in alone]
        return [] if np.allclose(rewards, singles) else ["a vectorised env gives other rewards than one alone"]
    finally:
        vector.close()
        for env in alone:
            env.close()


CHECKS: Mapping[str, Callable[[Subject], list[str]]] = MappingProxyType(
    {
        "gymnasium": _check_gymnasium,
        "scripted episodes": _check_scripted_episodes,
        "given tasks": _check_given_tasks,
        "no label leaves": _check_no_label,
        "deadline": _check_deadline,
        "close": _check_close,
        "vectorised": _check_vector,
        "memory": _check_memory,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Played:
    seen: tuple[bytes, ...]  # what a policy sees, in order
    pieces: list[bytes]  # every byte that came out, reprs and log lines too
    rewards: tuple[float, ...]
    slowest_s: float


def _play(subject: Subject, record: TaskRecord, reference: Reference) -> _Played:
    """Play one episode over a given task: wrong calls, a call of every tool, an answer."""
    calls = [_write_call(name, example_arguments(schema)) for name, schema in subject.tool_schemas.items()]
    seen: list[bytes] = []
    pieces: list[bytes] = []
    rewards: list[float] = []
    slowest_s = 0.0
    with _made(subject) as env, _log_lines() as lines:
        observation, info = _reset(env, replace(record, reference=reference))
        _note(env, observation, info, seen=seen, pieces=pieces)
        for action in (BAD_CALL, CALL_OF_NOTHING, *calls, ANSWER):
            started = time.perf_counter()
            observation, reward, is_terminated, is_truncated, info = env.step(action)
            slowest_s = max(slowest_s, time.perf_counter() - started)
            rewards.append(float(reward))
            _note(env, observation, info, seen=seen, pieces=pieces)
            if is_terminated or is_truncated:
                break
    pieces.extend(line.encode("utf-8", "surrogatepass") for line in lines)
    return _Played(seen=tuple(seen), pieces=pieces, rewards=tuple(rewards), slowest_s=slowest_s)


def _note(env: Any, observation: Any, info: Mapping[str, Any], *, seen: list[bytes], pieces: list[bytes]) -> None:
    shown = {key: value for key, value in info.items() if key not in _REWARD_KEYS}
    seen.append(observation["messages"].encode("utf-8", "surrogatepass"))
    seen.extend(image.tobytes() for image in observation["images"])
    seen.append(repr(sorted(shown.items())).encode("utf-8", "surrogatepass"))
    with contextlib.suppress(ResetNeeded):
        seen.append(repr(env.unwrapped.observe()).encode("utf-8", "surrogatepass"))
    pieces.extend(seen)
    pieces.extend(repr(thing).encode("utf-8", "surrogatepass") for thing in (info, env, vars(env.unwrapped)))


def _plant(record: TaskRecord) -> Reference:
    """Make a reference of canaries that fits a task: another choice for a closed question."""
    task = record.task
    shape = (task.images[0].height, task.images[0].width) if task.images else (60, 84)
    planted = make_canary_reference(mask_shape=shape)
    others = [choice.choice_id for choice in task.choices if choice.choice_id != record.reference.answer]
    return replace(planted, answer=others[0]) if others else planted


def _records(subject: Subject) -> list[TaskRecord]:
    return [subject.tasks[index] for index in range(min(_NUM_RECORDS, len(subject.tasks)))]


def _reset(env: Any, record: TaskRecord) -> Any:
    for data in record.blobs.values():
        env.unwrapped.blobs.put(data)
    options = {"task": record.task, "reference": record.reference, "trajectory_id": "check", "attempt": 0}
    return env.reset(seed=0, options=options)


def _write_call(name: str, arguments: Mapping[str, Any]) -> str:
    call = json.dumps({"name": name, "arguments": arguments})
    return f"<think>x</think><tool_call>{call}</tool_call>"


@contextlib.contextmanager
def _made(
    subject: Subject, *, tools: Sequence[str] | None = None, tool_timeout_s: float | None = None
) -> Iterator[Any]:
    env = subject.make(tools=tools, tool_timeout_s=tool_timeout_s)
    try:
        yield env
    finally:
        env.close()


@contextlib.contextmanager
def _log_lines() -> Iterator[list[str]]:
    """Collect every line that is logged meanwhile."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    root = logging.getLogger()
    level, handlers = root.level, root.handlers
    root.handlers = [Collector()]
    root.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        root.handlers = handlers
        root.setLevel(level)


def _children() -> set[int]:
    """Return the ids of our child processes; empty where there is no /proc."""
    found = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {int(pid) for path in found for pid in path.read_text().split()}


def _resident_bytes() -> int:
    """Return the resident memory after a collection; 0 where there is no /proc."""
    gc.collect()
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _describe(error: Exception) -> str:
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = "" if place is None else f" ({Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno})"
    return f"{type(error).__name__}: {str(error)[:300]}{where}"
