"""The ledger: which groups hold a slot, what is leased, which version is next. A pure state machine over records.

Owns the state, the capacity formula, the invariant and `apply`. It decides nothing (`gate` and `leases` do) and knows
no journal, trajectory or clock; replaying the records of a journal gives the same ledger, byte for byte.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from medvista_ray.buffer.entries import KEEP_ENDED, BatchEntry, GroupEntry, LedgerState, PacingSettings
from medvista_ray.buffer.records import (
    AttemptReplaced,
    BatchAcked,
    BatchesReturned,
    BatchSealed,
    ConsumerAttached,
    CursorSet,
    GroupAdmitted,
    GroupCommitted,
    GroupEnded,
    LeaseExtended,
    Record,
    RunConverged,
    RunResumed,
    ShardFetched,
    TasksEnded,
    VersionPublished,
)
from medvista_ray.config.schema import BufferConfig
from medvista_ray.errors import RunFailedError
from medvista_ray.types.delivery import GroupState

TOO_MANY_DELIVERIES = "too_many_deliveries"

Value = TypeVar("Value")


class Ledger:
    """Groups, batches and versions as the records say."""

    def __init__(self, config: BufferConfig, state: LedgerState | None = None) -> None:
        self.config = config
        self.state = state or LedgerState(
            settings=PacingSettings(groups_per_step=config.groups_per_step, max_staleness=config.max_staleness)
        )
        self._freed: list[int] = []

    @classmethod
    def load(cls, config: BufferConfig, data: bytes) -> Ledger:
        """Read what `dump` wrote."""
        return cls(config, msgspec.msgpack.decode(data, type=LedgerState))

    def dump(self) -> bytes:
        """Write the whole state."""
        return msgspec.msgpack.encode(self.state)

    # --- what it adds up to
    def count(self, *states: GroupState) -> int:
        """Count the groups in any of these states."""
        return sum(entry.state in states for entry in self.state.groups.values())

    def running(self, group_id: str) -> GroupEntry | None:
        """Return the entry of a group in execution, None for any other."""
        entry = self.state.groups.get(group_id)
        return entry if entry is not None and entry.state is GroupState.RUNNING else None

    def ready(self) -> list[str]:
        """Return the ready groups, first admitted first."""
        return [group_id for group_id, entry in self.state.groups.items() if entry.state is GroupState.READY]

    @property
    def capacity(self) -> int:
        """Count the groups that may be admitted now; below zero after a resume or a reconnect."""
        settings = self.state.settings
        in_execution = self.count(GroupState.RESERVED, GroupState.RUNNING)
        limit = (settings.max_staleness + 1) * settings.groups_per_step
        return min(self.config.max_concurrent - in_execution, limit - len(self.state.groups))

    @property
    def admission_ended(self) -> bool:
        """Return whether no group will run any more: nothing to admit, nothing in execution."""
        state = self.state
        over = state.is_converged or (state.tasks_ended and not state.tasks.again)
        return over and not self.count(GroupState.RESERVED, GroupState.RUNNING)

    # --- records
    def apply(self, number: int, record: Record) -> list[int]:
        """Change the state by one record; return the commit numbers of the groups that it ends."""
        self._freed = []
        match record:
            case GroupAdmitted():
                self._admit(record)
            case AttemptReplaced():
                entry = self.state.groups[record.group_id]
                entry.attempt, entry.num_dead_shards = record.attempt, entry.num_dead_shards + 1
            case GroupCommitted():
                self._commit(number, record)
            case GroupEnded():
                self._end(record.group_id, record.state, reason=record.reason, issue_again=record.issue_again)
            case BatchSealed():
                self._seal(record)
            case ShardFetched():
                self.state.batches[record.batch_id].ranks.append(record.rank)
            case LeaseExtended():
                self.state.batches[record.batch_id].deadline_s = record.deadline_s
            case BatchesReturned():
                self._take_back(record)
            case BatchAcked():
                self._ack(record)
            case VersionPublished():
                self.state.policy_version = record.version
                self.state.last_published = (record.version, record.batch_id)
                self._consume(record.batch_id)
            case ConsumerAttached():
                self._attach(record)
            case TasksEnded():
                self.state.tasks_ended = True
            case RunConverged():
                self.state.is_converged = True
                self.state.tasks.drop_waiting()
            case CursorSet():
                self.state.cursors[record.name] = (record.incarnation, record.number)
            case RunResumed():
                self._resume(record)
        self._check()
        return self._freed

    def _check(self) -> None:
        held, ended = len(self.state.groups), sum(self.state.ended.values())
        if self.state.submitted != held + ended:
            raise RunFailedError(f"ledger: {self.state.submitted} submitted, but {held} outstanding and {ended} ended")

    def _admit(self, record: GroupAdmitted) -> None:
        self.state.groups[record.group_id] = GroupEntry()
        self.state.submitted += 1
        self.state.tasks.start(record.group_id)

    def _commit(self, number: int, record: GroupCommitted) -> None:
        entry = self.state.groups[record.group_id]
        entry.state, entry.record_number, entry.incarnation = record.state, number, record.incarnation
        entry.min_policy_version = record.min_policy_version
        self.state.filtered_in_a_row += 1
        if record.state is not GroupState.FILTERED:
            self.state.filtered_in_a_row = 0
        if record.state is not GroupState.READY:
            self._end(record.group_id, record.state, reason=record.reason)

    def _end(self, group_id: str, state: GroupState, *, reason: str | None = None, issue_again: bool = False) -> None:
        entry = self.state.groups.pop(group_id)
        self.state.ended[state.value] += 1
        if reason is not None:
            kind = reason.partition(":")[0]  # without its details: these counters stay few
            self.state.failed_reasons[kind] = self.state.failed_reasons.get(kind, 0) + 1
        if entry.record_number is not None:
            self._freed.append(entry.record_number)
            _remember(self.state.stored, group_id, (entry.attempt, entry.incarnation))
        if issue_again:
            self.state.tasks.issue_again(group_id)
        else:
            self.state.tasks.close(group_id)

    def _seal(self, record: BatchSealed) -> None:
        state = self.state
        for group_id in record.group_ids:
            entry = state.groups[group_id]
            entry.state, entry.num_deliveries = GroupState.LEASED, entry.num_deliveries + 1
        state.batches[record.batch_id] = BatchEntry(
            group_ids=record.group_ids,
            train_from_version=record.train_from_version,
            staleness=record.staleness,
            deadline_s=record.deadline_s,
            world_size=state.settings.world_size,
            delivery_count=max(state.groups[group_id].num_deliveries for group_id in record.group_ids),
        )
        state.next_batch += 1
        if record.train_from_version in state.returned_versions:
            state.returned_versions.remove(record.train_from_version)

    def _release(self, batch_id: str) -> BatchEntry:
        """Close an open batch without training: its groups are ready again."""
        batch = self.state.batches.pop(batch_id)
        _remember(self.state.closed, batch_id, "back")
        for group_id in batch.group_ids:
            self.state.groups[group_id].state = GroupState.READY
        return batch

    def _take_back(self, record: BatchesReturned) -> None:
        for batch_id in record.batch_ids:
            self.state.returned_versions.append(self._release(batch_id).train_from_version)
        for group_id in record.failed_group_ids:
            self._end(group_id, GroupState.FAILED, reason=TOO_MANY_DELIVERIES)

    def _ack(self, record: BatchAcked) -> None:
        batch = self.state.batches[record.batch_id]
        batch.is_acked = True
        for group_id in batch.group_ids:
            self.state.groups[group_id].state = GroupState.ACKED
        if record.consumed_group_ids:
            self._consume(record.batch_id)

    def _consume(self, batch_id: str) -> None:
        batch = self.state.batches.pop(batch_id)
        _remember(self.state.closed, batch_id, "consumed")
        for group_id in batch.group_ids:
            self._end(group_id, GroupState.CONSUMED)

    def _attach(self, record: ConsumerAttached) -> None:
        self.state.fence = record.fence
        self.state.settings = PacingSettings(
            groups_per_step=record.groups_per_step,
            max_staleness=record.max_staleness,
            world_size=record.world_size,
            fixed_weights=record.fixed_weights,
        )
        for batch_id in list(self.state.batches):
            self._release(batch_id)
        self.state.returned_versions = []

    def _resume(self, record: RunResumed) -> None:
        state = self.state
        for batch_id in record.contained_batch_ids:
            self._consume(batch_id)
        for batch_id in list(state.batches):
            self._release(batch_id)
        for group_id, entry in state.groups.items():
            entry.num_deliveries = record.deliveries[group_id]
            if entry.state is GroupState.RUNNING:
                entry.attempt += 1
        state.incarnation, state.fence, state.next_batch = record.incarnation, record.fence, record.next_batch
        state.policy_version = record.policy_version
        state.cursors, state.cuts = dict(record.cursors), list(record.cuts)
        state.tasks_ended, state.last_published, state.returned_versions = False, None, []


def _remember(kept: dict[str, Value], key: str, value: Value) -> None:
    """Keep what a repeated call may ask for; forget the oldest beyond `KEEP_ENDED`."""
    kept[key] = value
    if len(kept) > KEEP_ENDED:
        del kept[next(iter(kept))]
