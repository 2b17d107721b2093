"""An outcome says what a trajectory did, and comes back from its file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medvista_ray.errors import ConfigError, DataError
from medvista_ray.evaluation.outcomes import EpisodeOutcome, make_outcome, read_outcomes, write_outcomes
from medvista_ray.types.messages import Choice, Task
from medvista_ray.types.tool_calls import ToolCall, ToolFailure
from medvista_ray.types.trajectories import StopReason, Trajectory, Turn

TASK = Task(
    task_id="zoom-1",
    family="zoom",
    question="Which letter?",
    images=(),
    choices=tuple(Choice(choice_id=letter, text=letter) for letter in "ABCD"),
)
GOOD_CALL = '<think>look</think><tool_call>{"name": "zoom", "arguments": {"bbox": [0, 0, 9, 9]}}</tool_call>'
BAD_CALL = "<think>look</think><tool_call>zoom!</tool_call>"


def make_turn(index: int, action: str, *, called: bool = False, failure: ToolFailure | None = None) -> Turn:
    call = ToolCall(name="zoom", arguments={"bbox": [0, 0, 9, 9]}) if called else None
    return Turn(
        turn_index=index, messages=(), action_start=0, action_end=1, action=action, tool_call=call, tool_failure=failure
    )


def make_trajectory(*turns: Turn, stop: StopReason = StopReason.ANSWERED, **breakdown: float) -> Trajectory:
    return Trajectory(
        group_id="0/1/0",
        member=0,
        task_id=TASK.task_id,
        token_ids=np.zeros(4, np.int32),
        loss_mask=np.array([False, True, True, True]),
        logprobs=np.zeros(4, np.float32),
        turns=turns,
        stop_reason=stop,
        reward_breakdown=breakdown,
        error="EngineDiedError" if stop is StopReason.BROKEN else None,
    )


def outcome_of(trajectory: Trajectory, **fields: bool) -> EpisodeOutcome:
    return make_outcome(trajectory, TASK, source="ct.dcm", greedy=False, **fields)


def test_an_episode_with_calls_and_an_answer() -> None:
    outcome = outcome_of(
        make_trajectory(
            make_turn(0, GOOD_CALL, called=True),
            make_turn(1, BAD_CALL, failure=ToolFailure.BAD_SCHEMA),
            make_turn(2, GOOD_CALL, called=True, failure=ToolFailure.BAD_ARGUMENT),
            make_turn(3, "<think>read</think><answer> b </answer>"),
            correct=1.0,
        )
    )
    assert (outcome.correct, outcome.is_valid_answer) == (True, True)
    assert (outcome.num_calls_opened, outcome.num_calls_valid) == (3, 2)
    assert outcome.tool_failures == (ToolFailure.BAD_SCHEMA, ToolFailure.BAD_ARGUMENT)
    assert (outcome.num_turns, outcome.num_action_tokens, outcome.source) == (4, 3, "ct.dcm")


@pytest.mark.parametrize("action", ["<think>x</think><answer>E</answer>", "<answer>A</answer>", "A"])
def test_an_answer_that_the_question_does_not_allow_is_not_valid(action: str) -> None:
    assert not outcome_of(make_trajectory(make_turn(0, action), correct=0.0)).is_valid_answer


def test_an_episode_cut_off_has_no_answer() -> None:
    trajectory = make_trajectory(make_turn(0, GOOD_CALL, called=True), stop=StopReason.TURN_LIMIT, correct=0.0)
    assert not outcome_of(trajectory).is_valid_answer


def test_a_broken_episode_is_wrong_whatever_its_reward() -> None:
    outcome = outcome_of(make_trajectory(stop=StopReason.BROKEN))
    assert (outcome.correct, outcome.is_valid_answer, outcome.num_turns) == (False, False, 0)


def test_a_reward_that_does_not_say_correct_needs_it_given() -> None:
    trajectory = make_trajectory(make_turn(0, "x"), accuracy=1.0)
    with pytest.raises(ConfigError, match="has no part named 'correct'"):
        outcome_of(trajectory)
    cut_off = replace(trajectory, stop_reason=StopReason.CONTEXT_LENGTH, reward_breakdown={})
    assert not outcome_of(cut_off).correct
    assert outcome_of(trajectory, correct=True).correct


def test_outcomes_come_back_from_their_file(tmp_path: Path) -> None:
    outcomes = [
        outcome_of(make_trajectory(make_turn(0, BAD_CALL, failure=ToolFailure.BAD_SCHEMA), correct=0.0)),
        outcome_of(make_trajectory(stop=StopReason.BROKEN)),
    ]
    path = tmp_path / "evaluation" / "base.jsonl"
    write_outcomes(path, outcomes)
    assert read_outcomes(path) == outcomes
    path.write_text(path.read_text() + '{"item_id": 3}\n')
    with pytest.raises(DataError, match=r"base.jsonl line 3 is no outcome"):
        read_outcomes(path)
