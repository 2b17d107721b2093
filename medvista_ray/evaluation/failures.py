"""Why a wrong episode went wrong: the failure classes of VISTA-Gym (arXiv 2511.19773), as far as they can be told.

Our reading: E1 is a call that is no call or breaks its schema (wrong argument names, E2, are found there too); E2-E4
are arguments that fit the schema and make no sense; E5 is a call whose result did not become an answer; E6 is a wrong
answer after good calls. Three classes are ours, for what a tool-calling system cannot show: see `FailureClass`. Each
wrong episode has one class, the first that applies.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from medvista_ray.evaluation.outcomes import EpisodeOutcome
from medvista_ray.types.tool_calls import ToolFailure
from medvista_ray.types.trajectories import StopReason


class FailureClass(StrEnum):
    """One reason per wrong episode, in order of precedence."""

    BROKEN = "broken"  # ours: the episode itself failed, not the policy
    CALL_SCHEMA = "E1_call_schema"
    ARGUMENTS = "E2_E4_arguments"
    TOOL_OUTPUT = "E5_tool_output"  # the tool failed, or a good call was followed by no valid answer
    REASONING = "E6_reasoning"  # good calls, a valid answer, and it is wrong
    NO_ANSWER = "no_answer"  # ours: no call and no valid answer
    NO_CALL = "no_call"  # ours: a valid answer without a call, and it is wrong


_TOOL_FAILED = {ToolFailure.FAILED, ToolFailure.TIMED_OUT, ToolFailure.NOT_INSTALLED}


def classify_failure(outcome: EpisodeOutcome) -> FailureClass | None:
    """Return why an episode went wrong; None for a right one."""
    failures = set(outcome.tool_failures)
    if outcome.correct:
        return None
    if outcome.stop_reason is StopReason.BROKEN:
        return FailureClass.BROKEN
    if ToolFailure.BAD_SCHEMA in failures or outcome.num_calls_opened > outcome.num_calls_valid:
        return FailureClass.CALL_SCHEMA
    if ToolFailure.BAD_ARGUMENT in failures:
        return FailureClass.ARGUMENTS
    if failures & _TOOL_FAILED or (outcome.num_calls_valid and not outcome.is_valid_answer):
        return FailureClass.TOOL_OUTPUT
    if outcome.num_calls_valid:
        return FailureClass.REASONING
    return FailureClass.NO_CALL if outcome.is_valid_answer else FailureClass.NO_ANSWER


def count_failures(outcomes: Iterable[EpisodeOutcome]) -> dict[str, int]:
    """Count wrong episodes by class, in order of precedence, without the classes that did not occur."""
    found = [classify_failure(outcome) for outcome in outcomes]
    return {kind.value: found.count(kind) for kind in FailureClass if kind in found}
