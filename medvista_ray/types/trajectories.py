"""The record of a rollout: an append-only token stream, its turns, its reward; and the group that is trained together.

Axis: L tokens of one trajectory (prompt, observations and actions, images expanded).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from medvista_ray.types.messages import Message, Task
from medvista_ray.types.tool_calls import ToolCall, ToolFailure


class StopReason(StrEnum):
    """Why an episode ended."""

    ANSWERED = "answered"  # terminated: the policy gave its answer
    MALFORMED = "malformed"  # terminated: an action that is neither a call nor an answer
    TURN_LIMIT = "turn_limit"  # truncated: no turn was left for an answer
    ACTION_LENGTH = "action_length"  # truncated: an action hit its token limit
    CONTEXT_LENGTH = "context_length"  # truncated: the next observation does not fit
    DEADLINE = "deadline"  # truncated: the episode's time was up
    BROKEN = "broken"  # the member is not trained; `error` says why

    @property
    def is_truncated(self) -> bool:
        """Return whether a limit ended the episode rather than the task."""
        return self in _TRUNCATED


_TRUNCATED = {StopReason.TURN_LIMIT, StopReason.ACTION_LENGTH, StopReason.CONTEXT_LENGTH, StopReason.DEADLINE}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpan:
    """Where the features of one image stand in the expanded token stream."""

    digest: str
    offset: int  # index of the first feature token
    length: int  # number of feature tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSpan:
    """Which policy version sampled the action tokens of [start, end)."""

    policy_version: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One exchange: what the policy was shown since its last action, and the action it took."""

    turn_index: int
    messages: tuple[Message, ...]  # new since the previous action
    action_start: int  # index into the token stream; the prompt of this turn is token_ids[:action_start]
    action_end: int
    action: str  # decoded text of the action tokens; a view for people, never encoded again
    tool_call: ToolCall | None = None
    tool_failure: ToolFailure | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trajectory:
    """One rollout. Arrays are read-only and have length L."""

    group_id: str
    member: int
    task_id: str
    token_ids: np.ndarray = field(repr=False)  # int32 [L] observations and actions, expanded, in order
    loss_mask: np.ndarray = field(repr=False)  # bool [L] True on action tokens
    logprobs: np.ndarray = field(repr=False)  # float32 [L] nats under the distribution sampled from; 0.0 off the mask
    image_spans: tuple[ImageSpan, ...] = ()
    version_spans: tuple[VersionSpan, ...] = ()  # cover the action tokens
    turns: tuple[Turn, ...] = field(default=(), repr=False)
    stop_reason: StopReason = StopReason.ANSWERED
    reward: float = 0.0
    reward_breakdown: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None  # set for a broken member: type, and text or place

    def __post_init__(self) -> None:
        shapes = {self.token_ids.shape, self.loss_mask.shape, self.logprobs.shape}
        if len(shapes) != 1:
            raise ValueError(f"unequal shapes: {sorted(shapes)}")
        for values in (self.token_ids, self.loss_mask, self.logprobs):
            values.flags.writeable = False

    @property
    def is_live(self) -> bool:
        """Return whether this member can be trained."""
        return self.stop_reason is not StopReason.BROKEN

    @property
    def min_policy_version(self) -> int:
        """Return the oldest policy version that sampled a token here."""
        return min(span.policy_version for span in self.version_spans)

    @property
    def num_action_tokens(self) -> int:
        """Count the sampled tokens."""
        return int(self.loss_mask.sum())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrajectoryGroup:
    """All trajectories of one task, compared with each other; the unit of dispatch, of staleness and of lease."""

    group_id: str  # epoch/task_index/issue
    attempt: int
    incarnation: int
    task: Task
    trajectories: tuple[Trajectory, ...]

    @property
    def live(self) -> tuple[Trajectory, ...]:
        """Return the members that can be trained."""
        return tuple(member for member in self.trajectories if member.is_live)

    @property
    def min_policy_version(self) -> int:
        """Return the oldest policy version that sampled a token of a live member."""
        return min(member.min_policy_version for member in self.live)

    @property
    def has_equal_rewards(self) -> bool:
        """Return whether no live member differs in reward from another."""
        return len({member.reward for member in self.live}) < 2


def format_group_id(epoch: int, task_index: int, issue: int) -> str:
    """Write a group id as `epoch/task_index/issue`."""
    return f"{epoch}/{task_index}/{issue}"


def parse_group_id(group_id: str) -> tuple[int, int, int]:
    """Read (epoch, task_index, issue) from a group id."""
    epoch, task_index, issue = (int(part) for part in group_id.split("/"))
    return epoch, task_index, issue
