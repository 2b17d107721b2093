"""What is kept of one held-out episode: right or wrong, calls, how it ended. Knows trajectories, no reference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from medvista_ray.envs.protocol_text import Answer, parse_action
from medvista_ray.errors import ConfigError, DataError
from medvista_ray.rewards.grading import is_valid_answer
from medvista_ray.runs.directory import write_atomic
from medvista_ray.types.messages import Task
from medvista_ray.types.tool_calls import ToolFailure
from medvista_ray.types.trajectories import StopReason, Trajectory, Turn

CALL_TAG = "<tool_call>"


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeOutcome:
    """One held-out episode."""

    item_id: str  # the task; several samples share it
    family: str
    source: str  # the image file or volume behind the item: sources, not items, stand for patients
    greedy: bool  # temperature 0, else 1
    correct: bool
    is_valid_answer: bool  # it ended with an answer that the question allows
    num_calls_opened: int  # `<tool_call>` tags written
    num_calls_valid: int  # of these, calls of a known tool with arguments that fit its schema
    num_turns: int
    num_action_tokens: int
    stop_reason: StopReason
    tool_failures: tuple[ToolFailure, ...] = ()  # in order of turns


def make_outcome(
    trajectory: Trajectory, task: Task, *, source: str, greedy: bool, correct: bool | None = None
) -> EpisodeOutcome:
    """Read the outcome of one episode; without `correct` the reward breakdown has to say it (`correct` > 0).

    Broken episodes, and those that a limit ended without a breakdown, are wrong.

    Raises:
        ConfigError: an episode ended with an answer, and its reward has no part `correct`.
    """
    if correct is None:
        answered = trajectory.stop_reason is StopReason.ANSWERED
        if answered and "correct" not in trajectory.reward_breakdown:
            raise ConfigError("env.target: its reward has no part named 'correct', which evaluation counts")
        correct = trajectory.reward_breakdown.get("correct", 0.0) > 0
    return EpisodeOutcome(
        item_id=task.task_id,
        family=task.family,
        source=source,
        greedy=greedy,
        correct=correct,
        is_valid_answer=_has_valid_answer(trajectory, task),
        num_calls_opened=sum(turn.action.count(CALL_TAG) for turn in trajectory.turns),
        num_calls_valid=sum(_is_valid_call(turn) for turn in trajectory.turns),
        num_turns=len(trajectory.turns),
        num_action_tokens=trajectory.num_action_tokens,
        stop_reason=trajectory.stop_reason,
        tool_failures=tuple(turn.tool_failure for turn in trajectory.turns if turn.tool_failure is not None),
    )


def write_outcomes(path: Path, outcomes: Iterable[EpisodeOutcome]) -> None:
    """Write outcomes as JSON lines, the whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, b"".join(msgspec.json.encode(outcome) + b"\n" for outcome in outcomes))


def read_outcomes(path: Path) -> list[EpisodeOutcome]:
    """Read outcomes back; `DataError` names the line that is none."""
    outcomes = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            outcomes.append(msgspec.json.decode(line, type=EpisodeOutcome))
        except msgspec.DecodeError as error:
            raise DataError(f"{path} line {number} is no outcome: {error}") from error
    return outcomes


def _has_valid_answer(trajectory: Trajectory, task: Task) -> bool:
    if trajectory.stop_reason is not StopReason.ANSWERED or not trajectory.turns:
        return False
    if task.answers_with == "mask":  # what is graded is the mask it stopped with
        return True
    action = parse_action(trajectory.turns[-1].action)
    return isinstance(action, Answer) and is_valid_answer(action.text, task)


def _is_valid_call(turn: Turn) -> bool:
    return turn.tool_call is not None and turn.tool_failure is not ToolFailure.BAD_SCHEMA
