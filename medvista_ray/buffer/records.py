"""What the journal holds: one record for every change of the ledger, in the past tense.

Owns the shapes only. A record carries the decision and not the rule that made it (which groups end, and how), so that
replaying needs no configuration and a reader needs no ledger. Trajectories lie beside the record, in the journal.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from medvista_ray.types.delivery import GroupState


class _Record(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """Every record is tagged with its kind, so that a page of bytes can be read back."""


class GroupAdmitted(_Record, frozen=True, kw_only=True, tag="admit"):
    """A group has its slot and runs."""

    group_id: str


class AttemptReplaced(_Record, frozen=True, kw_only=True, tag="attempt"):
    """A shard died: the group runs again, in its slot."""

    group_id: str
    attempt: int


class GroupCommitted(_Record, frozen=True, kw_only=True, tag="commit"):
    """A finished group is stored; `state` is ready, filtered or failed. The journal keeps its trajectories."""

    group_id: str
    attempt: int
    incarnation: int
    state: GroupState
    min_policy_version: int | None = None  # oldest version that sampled a token of a live member; None without tokens
    reason: str | None = None  # why it failed


class GroupEnded(_Record, frozen=True, kw_only=True, tag="end"):
    """A group ended other than by a commit or a train step: stale, cancelled or failed."""

    group_id: str
    state: GroupState
    reason: str | None = None  # why it failed
    issue_again: bool = False


class BatchSealed(_Record, frozen=True, kw_only=True, tag="lease"):
    """Ready groups were handed to the pacing consumer as one batch under one lease."""

    batch_id: str
    group_ids: tuple[str, ...]
    train_from_version: int
    staleness: tuple[int, ...]  # per group, versions
    deadline_s: float


class ShardFetched(_Record, frozen=True, kw_only=True, tag="fetch"):
    """A rank has its part of a batch."""

    batch_id: str
    rank: int


class LeaseExtended(_Record, frozen=True, kw_only=True, tag="extend"):
    """A lease has a new deadline."""

    batch_id: str
    deadline_s: float


class BatchesReturned(_Record, frozen=True, kw_only=True, tag="back"):
    """Leases went back, in order of sealing: one and every one sealed after it. One record, for they go together."""

    batch_ids: tuple[str, ...]
    failed_group_ids: tuple[str, ...] = ()  # handed out too often


class BatchAcked(_Record, frozen=True, kw_only=True, tag="ack"):
    """The consumer claimed a batch for its next version; with fixed weights it is consumed at once."""

    batch_id: str
    consumed_group_ids: tuple[str, ...] = ()


class VersionPublished(_Record, frozen=True, kw_only=True, tag="publish"):
    """A version was accepted; its batch is consumed."""

    version: int
    batch_id: str
    consumed_group_ids: tuple[str, ...]


class ConsumerAttached(_Record, frozen=True, kw_only=True, tag="attach"):
    """A pacing consumer holds the stream; what the one before it had open is ready again."""

    fence: int
    groups_per_step: int
    max_staleness: int
    world_size: int
    fixed_weights: bool


class TasksEnded(_Record, frozen=True, kw_only=True, tag="end_tasks"):
    """No new task will come."""


class RunConverged(_Record, frozen=True, kw_only=True, tag="converge"):
    """Too many groups in a row had equal rewards: admission has ended, nothing is issued again."""


class CursorSet(_Record, frozen=True, kw_only=True, tag="cursor"):
    """A named reader has read up to here."""

    name: str
    incarnation: int
    number: int


class RunResumed(_Record, frozen=True, kw_only=True, tag="resume"):
    """Ledger and journal went back to a checkpoint. The fields that never go back are written out here."""

    incarnation: int
    policy_version: int
    position: int  # record number at which the journal was cut
    contained_batch_ids: tuple[str, ...]  # open at the cut, and in the weights of the checkpoint
    consumed_group_ids: tuple[str, ...]
    fence: int
    next_batch: int
    deliveries: dict[str, int]  # hand-outs per group
    cursors: dict[str, tuple[int, int]]
    cuts: list[tuple[int, int]]  # (incarnation that began, record number of the cut)


Record = (
    GroupAdmitted
    | AttemptReplaced
    | GroupCommitted
    | GroupEnded
    | BatchSealed
    | ShardFetched
    | LeaseExtended
    | BatchesReturned
    | BatchAcked
    | VersionPublished
    | ConsumerAttached
    | TasksEnded
    | RunConverged
    | CursorSet
    | RunResumed
)


def end_states(record: Record) -> Iterator[tuple[str, GroupState]]:
    """Yield (group_id, end state) for every group that a record ends."""
    match record:
        case GroupCommitted(state=GroupState.READY):
            return
        case GroupCommitted() | GroupEnded():
            yield record.group_id, record.state
        case BatchesReturned():
            yield from ((group_id, GroupState.FAILED) for group_id in record.failed_group_ids)
        case BatchAcked() | VersionPublished() | RunResumed():
            yield from ((group_id, GroupState.CONSUMED) for group_id in record.consumed_group_ids)
