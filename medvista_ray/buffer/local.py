"""The async face of the replay buffer in one process: the same protocol as the remote one.

Every call runs to its end inside one event loop; no other thread may touch the buffer. It is handed the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from medvista_ray.buffer.replay_buffer import ReplayBuffer
from medvista_ray.types.delivery import (
    Admitted,
    Attached,
    BufferStatus,
    CommitResult,
    ConsumerSettings,
    Lease,
    Wait,
)
from medvista_ray.types.protocols import JournalPage
from medvista_ray.types.samples import BatchShard
from medvista_ray.types.trajectories import TrajectoryGroup


class LocalReplayBuffer:
    """Wraps the plain class; `clock` returns seconds that only go up."""

    def __init__(self, buffer: ReplayBuffer, clock: Callable[[], float]) -> None:
        self._buffer = buffer
        self._clock = clock

    async def admit(self, group_id: str, *, incarnation: int) -> Admitted | Wait:
        """Give a group its slot, or say why not."""
        return self._buffer.admit(group_id, incarnation=incarnation)

    async def attempt(self, group_id: str, *, replaces: int, incarnation: int) -> Admitted | None:
        """Run a group again whose shard died; None when it does not run any more."""
        return self._buffer.attempt(group_id, replaces=replaces, incarnation=incarnation)

    async def cancel(self, group_id: str, *, incarnation: int) -> None:
        """End a running group and let its task be issued again."""
        self._buffer.cancel(group_id, incarnation=incarnation)

    async def fail(self, group_id: str, *, reason: str, incarnation: int) -> None:
        """End a running group for good."""
        self._buffer.fail(group_id, reason=reason, incarnation=incarnation)

    async def end_tasks(self, *, incarnation: int) -> None:
        """Say that no new task will come."""
        self._buffer.end_tasks(incarnation=incarnation)

    async def to_issue_again(self) -> list[str]:
        """Return the groups to admit before any new task."""
        return self._buffer.to_issue_again()

    async def running(self) -> list[Admitted]:
        """Return the groups in execution."""
        return self._buffer.running()

    async def commit(self, group: TrajectoryGroup) -> CommitResult:
        """Store a finished group."""
        return self._buffer.commit(group)

    async def attach(self, settings: ConsumerSettings, *, incarnation: int | None = None) -> Attached:
        """Give the stream to a consumer."""
        return self._buffer.attach(settings, incarnation=incarnation)

    async def fetch(self, *, fence: int, train_from_version: int) -> Lease | Wait:
        """Seal the next batch, or say why not."""
        return self._buffer.fetch(fence=fence, train_from_version=train_from_version, now_s=self._clock())

    async def shard(self, lease_id: str, *, rank: int) -> BatchShard:
        """Return one rank's part of a batch."""
        return self._buffer.shard(lease_id, rank=rank)

    async def ack(self, lease_id: str, *, fence: int) -> None:
        """Claim a batch for the next version; `LeaseExpiredError` if it has gone back."""
        self._buffer.ack(lease_id, fence=fence)

    async def nack(self, lease_id: str, *, fence: int) -> None:
        """Give a lease back."""
        self._buffer.nack(lease_id, fence=fence)

    async def extend(self, lease_id: str, *, fence: int) -> float:
        """Renew the deadline of a lease; return it, in seconds of the clock."""
        return self._buffer.extend(lease_id, fence=fence, now_s=self._clock())

    async def publish(self, version: int, *, batch_id: str, fence: int) -> None:
        """Accept a version; its batch is consumed."""
        self._buffer.publish(version, batch_id=batch_id, fence=fence)

    async def expire(self) -> list[str]:
        """Take back the batches whose deadline has passed; return their group ids."""
        return self._buffer.expire(self._clock())

    async def status(self) -> BufferStatus:
        """Return the counters of the ledger."""
        return self._buffer.status()

    async def snapshot(self) -> bytes:
        """Return the buffer's part of a checkpoint."""
        return self._buffer.snapshot()

    async def cut(self, snapshot: bytes, *, contained_batch_ids: Sequence[str], policy_version: int) -> int:
        """Resume from a checkpoint; return the new incarnation."""
        return self._buffer.cut(snapshot, contained_batch_ids=contained_batch_ids, policy_version=policy_version)

    async def read(self, *, after: tuple[int, int], limit: int) -> JournalPage:
        """Return committed groups and end states in order."""
        return self._buffer.read(after=after, limit=limit)

    async def set_cursor(self, name: str, cursor: tuple[int, int]) -> None:
        """Keep how far a named reader has come."""
        self._buffer.set_cursor(name, cursor)

    async def cursor(self, name: str) -> tuple[int, int]:
        """Return how far a named reader has come."""
        return self._buffer.cursor(name)
