"""Blob store and replay buffer of another process: the async protocols that the driver, shards and ranks know.

Records travel between shards, buffer and ranks as msgpack bytes: they are copied out of Ray's object store at once,
where pickled arrays would keep it pinned. Neither ever passes through the driver.
"""

# What an actor answers has no type of its own; the signatures here give it one.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from medvista_ray.cluster.faults import answer_of
from medvista_ray.errors import RunFailedError
from medvista_ray.images.store import MemoryBlobCache
from medvista_ray.types import wire
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

_RENEW_S = 10.0  # far below the age at which a blob may be swept


class RemoteBlobStore:
    """Implements `BlobStore` over its actor, behind a cache of this process.

    The members of a group show the same images: what this process has put a moment ago is not sent again.
    """

    def __init__(self, actor: Any, *, cache_bytes: int) -> None:
        self._actor = actor
        self._cache = MemoryBlobCache(cache_bytes)
        self._puts: OrderedDict[str, tuple[float, asyncio.Task[None]]] = OrderedDict()  # oldest first

    async def put_if_absent(self, digest: str, data: bytes) -> None:
        """Store bytes under their SHA-256, or renew the age of the blob that is there, to within seconds."""
        now_s = asyncio.get_running_loop().time()
        while self._puts and next(iter(self._puts.values()))[0] < now_s - _RENEW_S:
            self._puts.popitem(last=False)
        if digest not in self._puts:
            self._puts[digest] = now_s, asyncio.create_task(self._put(digest, data), name=f"put {digest[:12]}")
        await asyncio.shield(self._puts[digest][1])  # another caller may be waiting for the same blob

    async def _put(self, digest: str, data: bytes) -> None:
        try:
            await self._ask(self._actor.put_if_absent.remote(digest, data))
        except BaseException:
            self._puts.pop(digest, None)
            raise
        self._cache.put(data)

    async def get_many(self, digests: Sequence[str]) -> list[bytes]:
        """Return the bytes of each digest; one call for all that this process lacks."""
        missing = self._cache.missing(dict.fromkeys(digests))
        # Taken before the call: a put of somebody else may evict them while it runs.
        found = {digest: self._cache.get(digest) for digest in set(digests).difference(missing)}
        fetched = await self._ask(self._actor.get_many.remote(missing)) if missing else []
        found |= dict(zip(missing, fetched, strict=True))
        for data in fetched:
            self._cache.put(data)
        return [found[digest] for digest in digests]

    async def _ask(self, call: Any) -> Any:
        return await answer_of(call, who="the blob store", died=RunFailedError)


class RemoteReplayBuffer:
    """Implements `ReplayBuffer` over its actor; pickles as the actor's handle.

    Ray repeats a call that a broken connection may have lost, so a call may arrive twice; the ledger gives its first
    answer again. The ledger is in that process's memory: when it dies, the run ends and goes on from a checkpoint.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def admit(self, group_id: str, *, incarnation: int) -> Admitted | Wait:
        """Give a group its slot, or say why not."""
        return await self._call("admit", group_id, incarnation=incarnation)

    async def attempt(self, group_id: str, *, replaces: int, incarnation: int) -> Admitted | None:
        """Run a group again whose shard died; None when it does not run any more."""
        return await self._call("attempt", group_id, replaces=replaces, incarnation=incarnation)

    async def cancel(self, group_id: str, *, incarnation: int) -> None:
        """End a running group and let its task be issued again."""
        await self._call("cancel", group_id, incarnation=incarnation)

    async def fail(self, group_id: str, *, reason: str, incarnation: int) -> None:
        """End a running group for good."""
        await self._call("fail", group_id, reason=reason, incarnation=incarnation)

    async def end_tasks(self, *, incarnation: int) -> None:
        """Say that no new task will come."""
        await self._call("end_tasks", incarnation=incarnation)

    async def to_issue_again(self) -> list[str]:
        """Return the groups to admit before any new task."""
        return await self._call("to_issue_again")

    async def running(self) -> list[Admitted]:
        """Return the groups in execution."""
        return await self._call("running")

    async def commit(self, group: TrajectoryGroup) -> CommitResult:
        """Store a finished group."""
        return await self._ask(self._actor.commit.remote(wire.encode_group(group)))

    async def attach(self, settings: ConsumerSettings, *, incarnation: int | None = None) -> Attached:
        """Become the pacing consumer."""
        return await self._call("attach", settings, incarnation=incarnation)

    async def fetch(self, *, fence: int, train_from_version: int) -> Lease | Wait:
        """Seal the next batch, or say why not."""
        return await self._call("fetch", fence=fence, train_from_version=train_from_version)

    async def shard(self, lease_id: str, *, rank: int) -> BatchShard:
        """Return one rank's part of a batch."""
        return wire.decode_shard(await self._ask(self._actor.shard.remote(lease_id, rank=rank)))

    async def ack(self, lease_id: str, *, fence: int) -> None:
        """Claim a batch for the next version; `LeaseExpiredError` if it has gone back."""
        await self._call("ack", lease_id, fence=fence)

    async def nack(self, lease_id: str, *, fence: int) -> None:
        """Give a lease back."""
        await self._call("nack", lease_id, fence=fence)

    async def extend(self, lease_id: str, *, fence: int) -> float:
        """Renew the deadline of a lease; return it, in seconds of the buffer's clock."""
        return await self._call("extend", lease_id, fence=fence)

    async def publish(self, version: int, *, batch_id: str, fence: int) -> None:
        """Accept a version; its batch is consumed."""
        await self._call("publish", version, batch_id=batch_id, fence=fence)

    async def expire(self) -> list[str]:
        """Take overdue batches back; return their group ids."""
        return await self._call("expire")

    async def status(self) -> BufferStatus:
        """Return the counters of the ledger."""
        return await self._call("status")

    async def snapshot(self) -> bytes:
        """Return the buffer's part of a checkpoint."""
        return await self._call("snapshot")

    async def cut(self, snapshot: bytes, *, contained_batch_ids: Sequence[str], policy_version: int) -> int:
        """Resume from a checkpoint; return the new incarnation."""
        return await self._call("cut", snapshot, contained_batch_ids=contained_batch_ids, policy_version=policy_version)

    async def read(self, *, after: tuple[int, int], limit: int) -> JournalPage:
        """Walk committed groups and end states in order."""
        return decode_page(await self._ask(self._actor.read.remote(after=after, limit=limit)))

    async def set_cursor(self, name: str, cursor: tuple[int, int]) -> None:
        """Keep how far a named reader has come."""
        await self._call("set_cursor", name, cursor)

    async def cursor(self, name: str) -> tuple[int, int]:
        """Return how far a named reader has come."""
        return await self._call("cursor", name)

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return await self._ask(self._actor.call.remote(method, *args, **kwargs))

    async def _ask(self, call: Any) -> Any:
        return await answer_of(call, who="the replay buffer", died=RunFailedError)


def encode_page(page: JournalPage) -> Any:
    """Return the page with its groups as bytes."""
    entries = tuple(
        (number, wire.encode_group(entry) if isinstance(entry, TrajectoryGroup) else entry)
        for number, entry in page.entries
    )
    return replace(page, entries=entries)  # type: ignore[arg-type]


def decode_page(page: Any) -> JournalPage:
    """Return the page with its groups."""
    entries = tuple(
        (number, wire.decode_group(entry) if isinstance(entry, bytes) else entry) for number, entry in page.entries
    )
    return replace(page, entries=entries)
