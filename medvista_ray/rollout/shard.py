"""An env shard: k slots that run whole groups and commit them. A plain class; `cluster/` makes an actor of it.

Consumes `GroupWork`, produces committed groups and receipts. Waits for engines (through its router) and tools.
Unblocked by `set_engines`, by deadlines, and by `cancel_group`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from medvista_ray.images.store import MemoryBlobCache
from medvista_ray.rollout.episode import EpisodeRunner
from medvista_ray.rollout.group import EnvFactory, EpisodeCount, make_receipt, run_group
from medvista_ray.types.delivery import GroupWork, Receipt
from medvista_ray.types.protocols import BlobStore, EngineSet, ReplayBuffer


class GroupRouter(Protocol):
    """The shard's part of routing: which engines serve, and which groups are over."""

    def set_engines(self, engines: EngineSet) -> None:
        """Take a newer engine set."""

    def forget_group(self, group_id: str) -> None:
        """Free the routes of a group that has ended."""


class EnvShard:
    """Runs at most `num_slots` groups at once; further ones wait for a slot."""

    def __init__(
        self,
        *,
        num_slots: int,
        runner: EpisodeRunner,
        router: GroupRouter,
        make_env: EnvFactory,
        blobs: BlobStore,
        buffer: ReplayBuffer,
        cache: MemoryBlobCache,
        live: EpisodeCount | None = None,
        on_episode_end: Callable[[], None] = lambda: None,
        close_tools: Callable[[], None] = lambda: None,
    ) -> None:
        self._runner = runner
        self._router = router
        self._make_env = make_env
        self._blobs = blobs
        self._buffer = buffer
        self._cache = cache
        self._live = live or EpisodeCount()
        self._on_episode_end = on_episode_end
        self._close_tools = close_tools
        self._slots = asyncio.Semaphore(num_slots)
        self._running: dict[str, asyncio.Task[Receipt]] = {}

    async def run_group(self, work: GroupWork) -> Receipt:
        """Run one group and commit it; `CancelledError` after `cancel_group`."""
        task = asyncio.ensure_future(self._run(work))
        self._running[work.group_id] = task
        try:
            return await task
        finally:
            task.cancel()  # the caller was cancelled: its group goes with it
            if self._running.get(work.group_id) is task:
                del self._running[work.group_id]

    async def cancel_group(self, group_id: str) -> None:
        """Stop a running group; nothing of it is committed."""
        task = self._running.get(group_id)
        if task is not None:
            task.cancel()

    def set_engines(self, engines: EngineSet) -> None:
        """Take a newer engine set."""
        self._router.set_engines(engines)

    async def drain(self) -> None:
        """Wait until every running group has ended."""
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def close(self) -> None:
        """Cancel what runs and stop the tool workers; may be called again."""
        for task in list(self._running.values()):
            task.cancel()
        await self.drain()
        self._close_tools()

    async def _run(self, work: GroupWork) -> Receipt:
        async with self._slots:
            try:
                group = await run_group(
                    work,
                    runner=self._runner,
                    make_env=self._make_env,
                    blobs=self._blobs,
                    cache=self._cache,
                    live=self._live,
                    on_episode_end=self._on_episode_end,
                )
            finally:
                self._router.forget_group(work.group_id)
            return make_receipt(group, await self._buffer.commit(group))
