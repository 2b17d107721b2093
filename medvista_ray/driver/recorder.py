"""The record loop: reads the journal like any reader and keeps every n-th committed group for people.

Knows the journal's cursor and a sink; holds nothing back. Only a checkpoint waits for it.
"""

from __future__ import annotations

import asyncio

from medvista_ray.driver.parts import Sink
from medvista_ray.driver.state import RunState
from medvista_ray.types.protocols import JournalPage, ReplayBuffer
from medvista_ray.types.trajectories import TrajectoryGroup

_PAGE_SIZE = 16  # records of one read
_POLL_S = 1.0


class Recorder:
    """Hands every n-th committed group to the sink, up to a number of trajectories."""

    def __init__(
        self, *, buffer: ReplayBuffer, state: RunState, sink: Sink, record_every: int, max_recorded: int
    ) -> None:
        self._buffer = buffer
        self._state = state
        self._sink = sink
        self._record_every = record_every
        self._max_recorded = max_recorded
        self.cursor = (0, 0)  # (incarnation, record number); in the checkpoint, with the two counts
        self.num_seen = 0  # committed groups
        self.num_recorded = 0  # trajectories
        self._page_lock = asyncio.Lock()  # a checkpoint drains while the loop reads

    async def run(self) -> None:
        """Follow the journal until enough is kept."""
        while self.num_recorded < self._max_recorded:
            mark = self._state.signal.mark()
            self._state.waits["record"] = "no_record"
            if not await self.read_page():
                await self._state.signal.wait(mark, timeout_s=_POLL_S)
        self._state.waits["record"] = "enough_recorded"

    async def drain(self) -> None:
        """Read what has been committed until now."""
        while self.num_recorded < self._max_recorded and await self.read_page():
            pass

    async def read_page(self) -> bool:
        """Read on from the cursor; return whether there was anything."""
        async with self._page_lock:
            page = await self._buffer.read(after=self.cursor, limit=_PAGE_SIZE)
            moved = page.cursor != self.cursor
            self.num_seen += page.num_taken  # retention was faster; every n-th stays every n-th
            await self._keep(page)
            self.cursor = page.cursor
            return moved

    async def _keep(self, page: JournalPage) -> None:
        incarnation, _ = page.cursor
        for number, entry in page.entries:
            if not isinstance(entry, TrajectoryGroup):
                continue
            if self.num_seen % self._record_every == 0 and self.num_recorded < self._max_recorded:
                await self._sink(entry)
                self.num_recorded += len(entry.trajectories)
            self.num_seen += 1
            self.cursor = incarnation, number + 1  # cancelled in the middle of a page, it goes on with the next group
