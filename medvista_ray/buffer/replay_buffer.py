"""The replay buffer: ready groups and their leases. Owns no tasks, clocks or clients; never blocks a finished group.

Every change is a record, written to the journal before the ledger takes it and before anybody is told, so a call whose
reply was lost is simply repeated. `gate` and `leases` say what may happen, `ledger` what has happened.

Swaps of weights are not known here: the driver alone admits and alone swaps, so it is the driver that admits nothing
while a swap is under way; held there, the rule needs no record, and survives a restart of the buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from medvista_ray.buffer import gate, leases
from medvista_ray.buffer.journal import InMemoryJournal, Journal
from medvista_ray.buffer.ledger import Ledger
from medvista_ray.buffer.pages import read_page
from medvista_ray.buffer.records import (
    BatchAcked,
    BatchSealed,
    ConsumerAttached,
    CursorSet,
    GroupAdmitted,
    GroupEnded,
    LeaseExtended,
    Record,
    RunConverged,
    ShardFetched,
    TasksEnded,
    VersionPublished,
)
from medvista_ray.buffer.snapshot import Snapshot, decode_snapshot, encode_snapshot
from medvista_ray.config.schema import BufferConfig
from medvista_ray.errors import FenceError
from medvista_ray.types.delivery import (
    Admitted,
    Attached,
    BufferStatus,
    CommitResult,
    ConsumerSettings,
    GroupState,
    Lease,
    Wait,
    WaitReason,
)
from medvista_ray.types.protocols import JournalPage
from medvista_ray.types.samples import BatchShard, BatchTotals, TrainingSample
from medvista_ray.types.trajectories import TrajectoryGroup

CutBatch = Callable[[Sequence[TrajectoryGroup], int], list[list[TrainingSample]]]  # (groups, world_size) -> per rank


class ReplayBuffer:
    """Groups between the shards that finish them and the one consumer that trains them."""

    def __init__(self, config: BufferConfig, *, cut_batch: CutBatch, journal: Journal | None = None) -> None:
        self._config = config
        self._cut_batch = cut_batch
        self._journal: Journal = InMemoryJournal() if journal is None else journal
        start, base = self._journal.base
        self._ledger = Ledger(config) if base is None else Ledger.load(config, base)
        for number, record in self._journal.records(start):
            self._apply(number, record)
        self._to_renew = [key for key, batch in self._ledger.state.batches.items() if not batch.is_acked]
        self._finish_convergence()

    def _write(self, record: Record, group: TrajectoryGroup | None = None) -> None:
        self._apply(self._journal.append(record, group), record)
        if self._journal.wants_base:
            self._journal.add_base(self._ledger.dump())

    def _apply(self, number: int, record: Record) -> None:
        for commit_number in self._ledger.apply(number, record):
            self._journal.release(commit_number)

    # --- driver
    def admit(self, group_id: str, *, incarnation: int) -> Admitted | Wait:
        """Give a group its slot; a group admitted before answers as the first time, whatever became of it."""
        gate.check_incarnation(self._ledger, incarnation)
        if not gate.is_known(self._ledger, group_id):
            if (reason := gate.why_not_admitted(self._ledger)) is not None:
                return Wait(reason=reason)
            self._write(GroupAdmitted(group_id=group_id))
        entry = self._ledger.state.groups.get(group_id)
        if entry is None and self._ledger.state.is_converged:
            return Wait(reason=WaitReason.CONVERGED)
        return Admitted(group_id=group_id, attempt=entry.attempt if entry else 0, incarnation=incarnation)

    def attempt(self, group_id: str, *, replaces: int, incarnation: int) -> Admitted | None:
        """Run a group again whose shard died during attempt `replaces`; None when it does not run any more."""
        gate.check_incarnation(self._ledger, incarnation)
        if (record := gate.replacement(self._ledger, group_id, replaces=replaces)) is not None:
            self._write(record)
        entry = self._ledger.running(group_id)
        return None if entry is None else Admitted(group_id=group_id, attempt=entry.attempt, incarnation=incarnation)

    def cancel(self, group_id: str, *, incarnation: int) -> None:
        """End a running group and let its task be issued again; any other group stays as it is."""
        gate.check_incarnation(self._ledger, incarnation)
        if self._ledger.running(group_id) is not None:
            self._write(gate.unfinished(self._ledger, group_id, GroupState.CANCELLED))

    def fail(self, group_id: str, *, reason: str, incarnation: int) -> None:
        """End a running group for good; any other group stays as it is."""
        gate.check_incarnation(self._ledger, incarnation)
        if self._ledger.running(group_id) is not None:
            self._write(GroupEnded(group_id=group_id, state=GroupState.FAILED, reason=reason))

    def end_tasks(self, *, incarnation: int) -> None:
        """Say that no new task will come; `end_of_data` may follow."""
        gate.check_incarnation(self._ledger, incarnation)
        if not self._ledger.state.tasks_ended:
            self._write(TasksEnded())

    def to_issue_again(self) -> list[str]:
        """Return the groups to admit before any new task, in the order in which the issues before them ended."""
        return list(self._ledger.state.tasks.again)

    def running(self) -> list[Admitted]:
        """Return the groups in execution: after a resume, or to find those that no shard executes."""
        return [
            Admitted(group_id=group_id, attempt=entry.attempt, incarnation=self._ledger.state.incarnation)
            for group_id, entry in self._ledger.state.groups.items()
            if entry.state is GroupState.RUNNING
        ]

    # --- shards
    def commit(self, group: TrajectoryGroup) -> CommitResult:
        """Store a finished group; the ledger made room for it at admission."""
        if gate.has_stored(self._ledger, group):
            return CommitResult.ACCEPTED  # the first answer was lost
        if not gate.accepts(self._ledger, group):
            return CommitResult.SUPERSEDED
        self._write(gate.judge(group), group)
        self._finish_convergence()
        return CommitResult.ACCEPTED

    def _finish_convergence(self) -> None:
        """End admission after too many filtered groups in a row; idempotent, also after a restart halfway."""
        if gate.must_converge(self._ledger):
            self._write(RunConverged())
        if self._ledger.state.is_converged:
            for admitted in self.running():
                self._write(gate.unfinished(self._ledger, admitted.group_id, GroupState.CANCELLED))

    # --- pacing consumer
    def attach(self, settings: ConsumerSettings, *, incarnation: int | None = None) -> Attached:
        """Give the stream to a consumer; what the one before it had leased or acked is ready again."""
        if incarnation is not None:
            gate.check_incarnation(self._ledger, incarnation)
        leases.check_settings(self._config, settings)
        self._write(
            ConsumerAttached(
                fence=self._ledger.state.fence + 1,
                groups_per_step=settings.groups_per_step,
                max_staleness=settings.max_staleness,
                world_size=settings.world_size,
                fixed_weights=settings.fixed_weights,
            )
        )
        return Attached(fence=self._ledger.state.fence, policy_version=self._ledger.state.policy_version)

    def fetch(self, *, fence: int, train_from_version: int, now_s: float) -> Lease | Wait:
        """Seal the next batch of fresh groups, or say why not; asking again for an open lease returns it."""
        self._renew_leases(now_s)
        leases.check_fence(self._ledger, fence)
        if (batch_id := leases.open_lease(self._ledger, train_from_version)) is not None:
            return self._lease(batch_id)
        leases.check_train_from(self._ledger, train_from_version)
        if leases.is_too_far_ahead(self._ledger, train_from_version):
            return Wait(reason=WaitReason.PREFETCH_NEEDS_STALENESS)
        stale = leases.stale(self._ledger, train_from_version)
        for group_id in stale:
            self._write(gate.unfinished(self._ledger, group_id, GroupState.STALE))
        fresh = self._ledger.ready()
        size = self._ledger.state.settings.groups_per_step
        if len(fresh) < size and not (fresh and self._ledger.admission_ended):
            return Wait(reason=leases.why_no_batch(self._ledger, num_stale=len(stale)))
        return self._seal(fresh[:size], train_from_version, deadline_s=now_s + self._config.ack_wait_s)

    def _seal(self, group_ids: Sequence[str], train_from_version: int, *, deadline_s: float) -> Lease:
        batch_id = f"b{self._ledger.state.next_batch}"
        ages = tuple(leases.staleness(self._ledger, group_id, train_from_version) for group_id in group_ids)
        self._write(
            BatchSealed(
                batch_id=batch_id,
                group_ids=tuple(group_ids),
                train_from_version=train_from_version,
                staleness=ages,
                deadline_s=deadline_s,
            )
        )
        return self._lease(batch_id)

    def _lease(self, batch_id: str) -> Lease:
        batch = self._ledger.state.batches[batch_id]
        return Lease(
            lease_id=batch_id,
            train_from_version=batch.train_from_version,
            group_ids=batch.group_ids,
            staleness=batch.staleness,
            deadline_s=batch.deadline_s,
            delivery_count=batch.delivery_count,
        )

    def shard(self, lease_id: str, *, rank: int) -> BatchShard:
        """Return one rank's part of a batch, with the denominators of the whole; `LeaseExpiredError` if it is gone."""
        batch = leases.open_batch(self._ledger, lease_id)
        if not 0 <= rank < batch.world_size:
            raise ValueError(f"rank must be in [0, {batch.world_size}), got {rank}")
        shards = self._cut_batch(self._stored(batch.group_ids), batch.world_size)
        if rank not in batch.ranks:
            self._write(ShardFetched(batch_id=lease_id, rank=rank))
        return BatchShard(
            lease_id=lease_id,
            rank=rank,
            world_size=batch.world_size,
            train_from_version=batch.train_from_version,
            samples=tuple(shards[rank]),
            totals=BatchTotals(
                num_groups=len(batch.group_ids),
                num_samples=sum(len(samples) for samples in shards),
                num_action_tokens=sum(int(sample.loss_mask.sum()) for samples in shards for sample in samples),
            ),
        )

    def _stored(self, group_ids: Iterable[str]) -> list[TrajectoryGroup]:
        numbers = [self._ledger.state.groups[group_id].record_number for group_id in group_ids]
        groups = [None if number is None else self._journal.group(number) for number in numbers]
        return [group for group in groups if group is not None]

    def ack(self, lease_id: str, *, fence: int) -> None:
        """Claim a batch for the next version, right before the first update; `LeaseExpiredError` if it has gone back.

        With fixed weights the batch is consumed at once. Refused before every rank has fetched its shard.
        """
        leases.check_fence(self._ledger, fence)
        if self._is_claimed(lease_id):
            return  # the first answer was lost
        leases.check_may_ack(self._ledger, lease_id)
        is_fixed = self._ledger.state.settings.fixed_weights
        consumed = self._ledger.state.batches[lease_id].group_ids if is_fixed else ()
        self._write(BatchAcked(batch_id=lease_id, consumed_group_ids=consumed))

    def _is_claimed(self, lease_id: str) -> bool:
        """Return whether a batch was acked, consumed ones included; `LeaseExpiredError` if it has gone back."""
        is_consumed = self._ledger.state.closed.get(lease_id) == "consumed"
        return is_consumed or leases.open_batch(self._ledger, lease_id).is_acked

    def nack(self, lease_id: str, *, fence: int) -> None:
        """Give a lease back, and with it every lease sealed after it; one that has gone back stays so."""
        leases.check_fence(self._ledger, fence)
        if self._ledger.state.closed.get(lease_id) == "back":
            return
        if self._is_claimed(lease_id):
            raise FenceError(f"lease {lease_id} is acked and cannot be given back")
        self._write(leases.going_back(self._ledger, lease_id))

    def extend(self, lease_id: str, *, fence: int, now_s: float) -> float:
        """Renew the deadline of a lease; return it, in seconds of the caller's clock."""
        self._renew_leases(now_s)
        leases.check_fence(self._ledger, fence)
        deadline_s = now_s + self._config.ack_wait_s
        if self._is_claimed(lease_id):
            return deadline_s  # a heartbeat that crossed its own ack
        if deadline_s != self._ledger.state.batches[lease_id].deadline_s:
            self._write(LeaseExtended(batch_id=lease_id, deadline_s=deadline_s))
        return deadline_s

    def publish(self, version: int, *, batch_id: str, fence: int) -> None:
        """Accept a version: its weights are staged, its batch is consumed."""
        leases.check_fence(self._ledger, fence)
        if self._ledger.state.last_published == (version, batch_id):
            return  # the first answer was lost
        leases.check_may_publish(self._ledger, version, batch_id)
        consumed = self._ledger.state.batches[batch_id].group_ids
        self._write(VersionPublished(version=version, batch_id=batch_id, consumed_group_ids=consumed))

    # --- time
    def expire(self, now_s: float) -> list[str]:
        """Take back the batches whose deadline has passed, and those sealed after them; return their group ids."""
        self._renew_leases(now_s)
        batches = self._ledger.state.batches
        for batch_id, batch in batches.items():
            if not batch.is_acked and batch.deadline_s <= now_s:
                record = leases.going_back(self._ledger, batch_id)
                group_ids = [group_id for key in record.batch_ids for group_id in batches[key].group_ids]
                self._write(record)
                return group_ids  # every later lease went with it
        return []

    def _renew_leases(self, now_s: float) -> None:
        """Give the leases that were open before a restart their full time again, at the first sight of a clock."""
        for batch_id in self._to_renew:
            batch = self._ledger.state.batches.get(batch_id)
            if batch is not None and not batch.is_acked:
                self._write(LeaseExtended(batch_id=batch_id, deadline_s=now_s + self._config.ack_wait_s))
        self._to_renew = []

    # --- checkpoints
    def snapshot(self) -> bytes:
        """Return the ledger, the journal's position and every group that is ready, leased or acked."""
        numbers = [entry.record_number for entry in self._ledger.state.groups.values()]
        found = {number: self._journal.group(number) for number in numbers if number is not None}
        groups = {number: group for number, group in found.items() if group is not None}
        ledger = self._ledger.dump()
        return encode_snapshot(Snapshot(position=self._journal.position, ledger=ledger, groups=groups))

    def cut(self, snapshot: bytes, *, contained_batch_ids: Sequence[str], policy_version: int) -> int:
        """Resume from a checkpoint whose weights have this version and contain these batches; return the incarnation.

        Everything after the snapshot is withdrawn. Other leased and acked groups are ready again, running ones have a
        new attempt (`running` names them). Delivery counts, cursors and the fence do not go back.
        """
        saved = decode_snapshot(snapshot)
        past = Ledger.load(self._config, saved.ledger)
        record = leases.resumption(
            past.state,
            self._ledger.state,
            contained_batch_ids=contained_batch_ids,
            policy_version=policy_version,
            position=saved.position,
        )
        number = self._journal.cut(record, base=saved.ledger, groups=saved.groups)
        self._ledger, self._to_renew = past, []
        self._apply(number, record)
        return record.incarnation

    # --- readers
    def read(self, *, after: tuple[int, int], limit: int) -> JournalPage:
        """Return committed groups and end states in order from a cursor (incarnation, record number) on."""
        return read_page(self._journal, self._ledger.state, after=after, limit=limit)

    def set_cursor(self, name: str, cursor: tuple[int, int]) -> None:
        """Keep how far a named reader has come."""
        if self._ledger.state.cursors.get(name) != cursor:
            self._write(CursorSet(name=name, incarnation=cursor[0], number=cursor[1]))

    def cursor(self, name: str) -> tuple[int, int]:
        """Return how far a named reader has come; the start for an unknown one."""
        return self._ledger.state.cursors.get(name, (0, 0))

    def status(self) -> BufferStatus:
        """Return the counters of the ledger."""
        state = self._ledger.state
        held = {each.value: self._ledger.count(each) for each in GroupState if each.value not in state.ended}
        return BufferStatus(
            counts=held | state.ended | {"submitted": state.submitted},
            capacity=self._ledger.capacity,
            policy_version=state.policy_version,
            incarnation=state.incarnation,
            fence=state.fence,
            num_filtered_in_a_row=state.filtered_in_a_row,
            admission_ended=self._ledger.admission_ended,
            open_leases=tuple(state.batches),
            failed_reasons=dict(state.failed_reasons),
        )
