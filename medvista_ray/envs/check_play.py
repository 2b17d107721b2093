"""Plays an env under test: one short episode for each thing a policy may do, and notes every byte that comes out.

Knows how to make, reset and step any env of this protocol; judges nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from gymnasium.error import ResetNeeded

from medvista_ray.envs.check_tools import example_call
from medvista_ray.envs.checker import ANSWER, BAD_CALL, CALL_OF_NOTHING
from medvista_ray.tools.runner import ToolDescription
from medvista_ray.types.messages import Reference
from medvista_ray.types.protocols import TaskRecord, TaskSource
from medvista_ray.types.tool_calls import ToolFailure

_REWARD_KEYS = {"reward_breakdown", "is_valid_answer", "episode"}
_STOP = "stop_action"  # ends a protocol without answers


class MakeEnv(Protocol):
    """Makes the env under test, as a rollout does."""

    def __call__(self, *, tools: Sequence[str] | None = None, tool_timeout_s: float | None = None) -> Any:
        """Make an env with these tools, None = those of the config."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """The env under test."""

    make: MakeEnv
    tasks: TaskSource  # what rollouts would give it
    descriptions: tuple[ToolDescription, ...]  # of its tools; an env that offers others says so itself (`offered`)
    tools: tuple[str, ...]  # their specs
    step_timeout_s: float
    num_episodes: int = 300  # of the memory check


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Played:
    """What came out of the episodes over one task."""

    seen: tuple[bytes, ...]  # what a policy sees, in order
    pieces: tuple[bytes, ...]  # every byte that came out: reprs, log lines, warnings, output streams too
    rewards: tuple[float, ...]
    reward_parts: tuple[str, ...]  # names in the breakdowns, in order of episodes
    outcomes: tuple[tuple[str, ToolFailure | None], ...]  # name of each tool that was called, and how it ended
    slowest_s: float


def scripts_of(env: Any, subject: Subject) -> list[tuple[str, ...]]:
    """Return the actions of each episode: wrong calls, each tool by itself, and a way to end."""
    offered: Sequence[ToolDescription] = getattr(env.unwrapped, "offered", subject.descriptions)
    names = [tool.name for tool in offered]
    calls = [write_call(tool.name, example_call(tool)) for tool in offered if tool.name != _STOP]
    if _STOP not in names:
        return [(BAD_CALL, CALL_OF_NOTHING, ANSWER), *((call, ANSWER) for call in calls)]
    stop, first = write_call(_STOP, {}), calls[0]  # a mask has to be there before the end
    return [(BAD_CALL, CALL_OF_NOTHING, first, stop), *((first, call, stop) for call in calls)]


def play(subject: Subject, record: TaskRecord, reference: Reference) -> Played:
    """Play all scripts over one task."""
    notes = _Notes()
    with made(subject) as env, captured() as texts:
        for script in scripts_of(env, subject):
            observation, info = reset_to(env, replace(record, reference=reference))
            notes.take(env, observation, info)
            for action in script:
                started = time.perf_counter()
                observation, reward, is_terminated, is_truncated, info = env.step(action)
                notes.slowest_s = max(notes.slowest_s, time.perf_counter() - started)
                notes.rewards.append(float(reward))
                notes.take(env, observation, info)
                if is_terminated or is_truncated:
                    break
    return notes.end(texts)


class _Notes:
    """What is noted on the way."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.pieces: list[bytes] = []
        self.rewards: list[float] = []
        self.reward_parts: list[str] = []
        self.outcomes: list[tuple[str, ToolFailure | None]] = []
        self.slowest_s = 0.0

    def take(self, env: Any, observation: Any, info: Mapping[str, Any]) -> None:
        """Note one observation and all that hangs on the env."""
        shown = {key: value for key, value in info.items() if key not in _REWARD_KEYS}
        seen = [_bytes(observation["messages"]), *(image.tobytes() for image in observation["images"])]
        seen.append(_bytes(repr(sorted(shown.items()))))
        with contextlib.suppress(ResetNeeded):
            seen.append(_bytes(repr(env.unwrapped.observe())))
        self.seen += seen
        self.pieces += seen
        self.pieces += [_bytes(repr(thing)) for thing in (info, env, vars(env.unwrapped))]
        self.reward_parts += sorted(info.get("reward_breakdown") or {})
        call = info.get("tool_call")
        if call is not None:
            self.outcomes.append((call.name, info.get("tool_failure")))

    def end(self, texts: Sequence[bytes]) -> Played:
        """Return all of it."""
        return Played(
            seen=tuple(self.seen),
            pieces=(*self.pieces, *texts),
            rewards=tuple(self.rewards),
            reward_parts=tuple(self.reward_parts),
            outcomes=tuple(self.outcomes),
            slowest_s=self.slowest_s,
        )


def reset_to(env: Any, record: TaskRecord) -> Any:
    """Start an episode over a given task, as rollouts do."""
    for data in record.blobs.values():
        env.unwrapped.blobs.put(data)
    options = {"task": record.task, "reference": record.reference, "trajectory_id": "check", "attempt": 0}
    return env.reset(seed=0, options=options)


def write_call(name: str, arguments: Mapping[str, Any]) -> str:
    """Write an action that calls a tool."""
    return f"<think>x</think><tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


@contextlib.contextmanager
def made(subject: Subject, *, tools: Sequence[str] | None = None, tool_timeout_s: float | None = None) -> Iterator[Any]:
    """Make an env and close it."""
    env = subject.make(tools=tools, tool_timeout_s=tool_timeout_s)
    try:
        yield env
    finally:
        env.close()


@contextlib.contextmanager
def captured() -> Iterator[list[bytes]]:
    """Collect what is logged, warned and written to the output streams meanwhile; nothing of it is shown."""
    texts: list[bytes] = []
    with warnings.catch_warnings(record=True) as caught, _streams(texts), _loggers(texts):
        warnings.simplefilter("always")
        yield texts
    texts.extend(_bytes(str(warning.message)) for warning in caught)


@contextlib.contextmanager
def _streams(texts: list[bytes]) -> Iterator[None]:
    """Take the file descriptors 1 and 2, so that what C code and child processes write is seen too."""
    kept = [os.dup(number) for number in (1, 2)]
    with tempfile.TemporaryFile() as file:
        try:
            _flush()
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            yield
        finally:
            _flush()
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)
            file.seek(0)
            texts.append(file.read())


@contextlib.contextmanager
def _loggers(texts: list[bytes]) -> Iterator[None]:
    """Listen to every logger, those that pass nothing on included."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            texts.append(_bytes(self.format(record)))

    known = [each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger)]
    quiet = [logger for logger in known if not logger.propagate]
    before = [(logger, logger.level, logger.handlers) for logger in (logging.root, *quiet)]
    try:
        for logger in (logging.root, *quiet):
            logger.handlers = [Collector()]
            logger.setLevel(logging.DEBUG)
        yield
    finally:
        for logger, level, handlers in before:
            logger.handlers = handlers
            logger.setLevel(level)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
