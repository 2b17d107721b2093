"""Words of the delivery protocol: admission, commits, leases, waits, receipts, progress of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from medvista_ray.types.messages import Reference, Task


class WaitReason(StrEnum):
    """Why a call has nothing to give; every wait has one, visible in status and metrics."""

    NO_CAPACITY = "no_capacity"  # the ledger admits nothing until groups are consumed or end
    CONVERGED = "converged"  # admission has ended: too many groups in a row had equal rewards
    GROUP_INCOMPLETE = "group_incomplete"  # fewer ready groups than a batch needs
    ALL_FILTERED = "all_filtered"  # groups finish, but with equal rewards
    STALE_DROPPED = "stale_dropped"  # ready groups were too old and ended here
    NO_ENGINE = "no_engine"  # no engine serves
    NO_CONSUMER = "no_consumer"  # nobody holds the fence
    PREFETCH_NEEDS_STALENESS = "prefetch_needs_staleness"  # a batch ahead, with max_staleness 0
    SWAP = "swap"  # weights are being swapped
    NO_TASK = "no_task"  # the data has ended, or every task is under way
    END_OF_DATA = "end_of_data"  # nothing is ready or leased, and nothing will be


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Nothing to give now, and why."""

    reason: WaitReason


class CommitResult(StrEnum):
    """What the buffer did with a finished group."""

    ACCEPTED = "accepted"
    SUPERSEDED = "superseded"  # another attempt, issue or incarnation took its place


class GroupState(StrEnum):
    """States of a group; the last five are ends."""

    RESERVED = "reserved"
    RUNNING = "running"
    READY = "ready"
    LEASED = "leased"
    ACKED = "acked"
    CONSUMED = "consumed"
    FILTERED = "filtered"
    FAILED = "failed"
    STALE = "stale"
    CANCELLED = "cancelled"


END_STATES = (
    GroupState.CONSUMED,
    GroupState.FILTERED,
    GroupState.FAILED,
    GroupState.STALE,
    GroupState.CANCELLED,
)
SETTLED_STATES = (GroupState.CONSUMED, GroupState.FILTERED, GroupState.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A group has its slot and runs."""

    group_id: str
    attempt: int
    incarnation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerSettings:
    """What the pacing consumer asks for when it attaches."""

    groups_per_step: int
    max_staleness: int
    world_size: int = 1
    fixed_weights: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """What the pacing consumer starts from."""

    fence: int
    policy_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One sealed batch; the data come by `shard`."""

    lease_id: str
    train_from_version: int
    group_ids: tuple[str, ...]
    staleness: tuple[int, ...]  # per group, versions, at hand-out
    deadline_s: float
    delivery_count: int  # most often that one of its groups was handed out


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferStatus:
    """Counters of the ledger at one moment."""

    counts: Mapping[str, int]  # by GroupState value, plus "submitted"
    capacity: int
    policy_version: int
    incarnation: int
    fence: int
    num_filtered_in_a_row: int
    admission_ended: bool
    open_leases: tuple[str, ...] = ()  # leased or acked, not published; oldest first
    failed_reasons: Mapping[str, int] = field(default_factory=dict)  # too_slow, too_many_attempts, … -> groups


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupWork:
    """What a shard needs to run one group. The reference stays in the shard."""

    task: Task
    reference: Reference
    group_id: str
    attempt: int
    incarnation: int
    group_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What the driver learns of a finished group: ids, state, sizes; never data."""

    group_id: str
    attempt: int
    result: CommitResult
    family: str
    rewards: tuple[float, ...]  # live members only
    num_broken: int
    num_tokens: int
    num_action_tokens: int
    metrics: Mapping[str, float] = field(default_factory=dict)  # means over live members, keys stage/what/unit


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """What one train step did."""

    lease_id: str
    train_from_version: int
    group_ids: tuple[str, ...]
    staleness: tuple[int, ...]  # per group, at hand-out
    metrics: Mapping[str, float] = field(default_factory=dict)
    max_abs_logprob_diff: float | None = None  # on tokens of the version trained from; None without any


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReport:
    """How far each engine is from the learner; one that died under its probe is not in it."""

    diffs: Mapping[str, float]  # engine_id -> max |engine - learner| logprob, nats; may be inf or NaN

    @property
    def max_abs_logprob_diff(self) -> float | None:
        """Return the largest of all engines, inf for NaN; None when no engine was measured."""
        return max((math.inf if math.isnan(diff) else diff for diff in self.diffs.values()), default=None)
