"""`medvista check-env`: everything that rollouts, rewards and evaluation rely on, for anybody's env.

Each check takes a `Subject` and returns problems, one line each. Knows no config file, no run and no policy.

No label may leave an env. Two ways to see: every byte that comes out is searched for the canaries of a planted
reference, and an episode played under two different references must look the same until its reward.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, MappingProxyType

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env as check_with_gymnasium

from medvista_ray.envs.canary import find_leaks, make_canary_reference, needles_of
from medvista_ray.envs.check_play import Subject, captured, made, play, reset_to, scripts_of, write_call
from medvista_ray.envs.check_tools import HANG_SPEC
from medvista_ray.envs.checker import ANSWER, check_episodes
from medvista_ray.types.messages import Reference
from medvista_ray.types.protocols import TaskRecord
from medvista_ray.types.tool_calls import ToolFailure

HANG_TIMEOUT_S = 1.0
HANG_MARGIN_S = 3.0  # killing a worker and answering takes a moment on a busy machine
CHECK_TIMEOUT_S = 300.0
_NUM_RECORDS = 3
_NUM_TASKS = 64
_MAX_GROWTH = 1.02
_FAILURE_HINT = "try it with `medvista tools try`, or give the tool an `example`"


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
    """Run every check, in order; an exception of the env is a problem of the check it came up in.

    An env that cannot be made ends it: nothing else could be said of it.
    """
    for name, check in CHECKS.items():
        started = time.perf_counter()
        try:
            with _time_limit(CHECK_TIMEOUT_S):
                problems = check(subject)
        except Exception as error:  # noqa: BLE001  -- somebody else's env may raise anything
            problems = [_describe(error)]
        yield CheckResult(name=name, problems=tuple(problems), wall_s=time.perf_counter() - started)
        if problems and name == "made":
            return


def _check_made(subject: Subject) -> list[str]:
    """Make an env as rollouts do, with `config`, `tools` and `renderer`."""
    with made(subject) as env:
        missing = [name for name in ("observe", "blobs") if not hasattr(env.unwrapped, name)]
    return [f"the env has no {name!r}, which rollouts use" for name in missing]


def _check_gymnasium(subject: Subject) -> list[str]:
    """Return what Gymnasium's own checker says; it checks an env without wrappers."""
    with made(subject) as env, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_with_gymnasium(env.unwrapped, skip_render_check=True)
    ours = ("not within the observation space", "is not deterministic", "deprecat")
    return [str(warning.message) for warning in caught if any(text in str(warning.message) for text in ours)]


def _check_scripted_episodes(subject: Subject) -> list[str]:
    return check_episodes(subject.make)


def _check_tasks(subject: Subject) -> list[str]:
    """Look for tasks that nobody could get right, or that say their answer."""
    problems: list[str] = []
    for index in range(min(_NUM_TASKS, len(subject.tasks))):
        task, reference = subject.tasks[index].task, subject.tasks[index].reference
        if reference.task_id != task.task_id:
            problems.append(f"task {task.task_id}: its reference belongs to {reference.task_id!r}")
        ids = [choice.choice_id for choice in task.choices]
        if ids and reference.answer not in ids:
            problems.append(f"task {task.task_id}: the answer of its reference is none of the choices {ids}")
        is_open = task.answers_with in ("text", "number")
        if is_open and len(reference.answer) > 2 and reference.answer.casefold() in task.question.casefold():
            problems.append(f"task {task.task_id}: the question contains its answer")
    return problems


def _check_given_tasks(subject: Subject) -> list[str]:
    """Play tasks that are handed over in `reset(options=…)`, as rollouts do; the same twice."""
    problems: list[str] = []
    for record in _records(subject):
        first, second = (play(subject, record, record.reference) for _ in range(2))
        if first.seen != second.seen or first.rewards != second.rewards:
            problems.append(f"task {record.task.task_id}: the same task and actions gave two different episodes")
        if first.slowest_s > subject.step_timeout_s:
            problems.append(f"task {record.task.task_id}: a step took {first.slowest_s:.1f} s")
    return problems


def _check_tools(subject: Subject) -> list[str]:
    """Call each tool with arguments that fit its schema: it may refuse them, and may not fail."""
    broken = (ToolFailure.FAILED, ToolFailure.NOT_INSTALLED, ToolFailure.TIMED_OUT)
    ends = [end for record in _records(subject) for end in play(subject, record, record.reference).outcomes]
    failed = {name: failure for name, failure in ends if failure in broken}
    return [f"tool {name!r} ends in {failure.value}: {_FAILURE_HINT}" for name, failure in failed.items() if failure]


def _check_no_label(subject: Subject) -> list[str]:
    problems: list[str] = []
    for record in _records(subject):
        name, planted = record.task.task_id, _plant(record)
        real, other = play(subject, record, record.reference), play(subject, record, planted)
        secret = replace(planted, answer="") if record.task.choices else planted  # the choices are no secret
        for needle in find_leaks(list(other.pieces), needles_of(secret)):
            problems.append(f"task {name}: the reference came out: {needle[:40]!r}")
        if real.seen != other.seen:
            problems.append(f"task {name}: what the policy sees depends on the reference")
        if set(real.reward_parts) != set(other.reward_parts):
            problems.append(f"task {name}: the names in reward_breakdown depend on the reference")
    return problems


def _check_deadline(subject: Subject) -> list[str]:
    """Call a tool that hangs, twice; an env that runs no tools of ours has nothing to show here."""
    before, tools = _children(), (*subject.tools, HANG_SPEC)
    with made(subject, tools=tools, tool_timeout_s=HANG_TIMEOUT_S) as env, captured():
        for _ in range(2):  # the first call waits for the workers to start, which counts towards no deadline
            reset_to(env, next(iter(_records(subject))))
            started = time.perf_counter()
            observation, *_ = env.step(write_call("hang", {}))
            wall_s = time.perf_counter() - started
    if wall_s > HANG_TIMEOUT_S + HANG_MARGIN_S:
        return [f"a hung tool held step() for {wall_s:.1f} s, its deadline is {HANG_TIMEOUT_S:g} s"]
    if "no tool" not in observation["messages"] and "timed_out" not in observation["messages"]:
        return [f"the time-out of a hung tool is not in the observation: {observation['messages'][:120]}"]
    return [f"process {pid} outlived close()" for pid in _children() - before]


def _check_close(subject: Subject) -> list[str]:
    before = _children()
    fresh, running = subject.make(), subject.make()
    fresh.close()
    fresh.close()
    reset_to(running, next(iter(_records(subject))))
    running.close()
    running.close()
    return [f"process {pid} outlived close()" for pid in _children() - before]


def _check_memory(subject: Subject) -> list[str]:
    """Play every script again and again; the resident memory after the first third is what counts."""
    records = _records(subject)
    base = count = 0
    with made(subject) as env:
        scripts = scripts_of(env, subject)
        while count < subject.num_episodes:
            if base == 0 and count >= subject.num_episodes // 3:
                base = _resident_bytes()
            reset_to(env, records[count % len(records)])
            for action in scripts[count // len(records) % len(scripts)]:
                if any(env.step(action)[2:4]):
                    break
            count += 1
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
        "made": _check_made,
        "gymnasium": _check_gymnasium,
        "scripted episodes": _check_scripted_episodes,
        "tasks": _check_tasks,
        "given tasks": _check_given_tasks,
        "tools": _check_tools,
        "no label leaves": _check_no_label,
        "deadline": _check_deadline,
        "close": _check_close,
        "vectorised": _check_vector,
        "memory": _check_memory,
    }
)


def _plant(record: TaskRecord) -> Reference:
    """Make a reference of canaries that fits a task: another choice for a closed question."""
    task = record.task
    shape = (task.images[0].height, task.images[0].width) if task.images else (60, 84)
    planted = make_canary_reference(mask_shape=shape)
    others = [choice.choice_id for choice in task.choices if choice.choice_id != record.reference.answer]
    return replace(planted, answer=others[0]) if others else planted


def _records(subject: Subject) -> list[TaskRecord]:
    return [subject.tasks[index] for index in range(min(_NUM_RECORDS, len(subject.tasks)))]


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` in the main thread after a while, so that an env that never returns is named too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no end within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


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
