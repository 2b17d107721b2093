"""What the loops of one run share: versions, the task cursor, running groups, wait reasons, one wake-up signal.

Each field has one writer, named beside it. Knows no part and owns no task.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from medvista_ray.types.delivery import WaitReason


class Signal:
    """Wakes loops when something has changed; a change between `mark` and `wait` is never missed."""

    def __init__(self) -> None:
        self._count = 0
        self._event = asyncio.Event()

    def mark(self) -> int:
        """Remember this moment, before looking at what may change."""
        return self._count

    def notify(self) -> None:
        """Say that something has changed."""
        self._count += 1
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, mark: int, *, timeout_s: float) -> bool:
        """Return True at the first change since `mark`, False when the time is up."""
        if self._count != mark:
            await asyncio.sleep(0)  # a loop that always finds a change must still let the others run
            return True
        try:
            async with asyncio.timeout(timeout_s):  # `wait_for` of Python 3.11 can swallow a cancellation
                await self._event.wait()
        except TimeoutError:
            return False
        return True


@dataclass(slots=True, kw_only=True)
class RunningGroup:
    """A group that the driver has admitted and not seen end."""

    attempt: int
    started_s: float  # clock at admission
    task: asyncio.Task[None] | None = None  # None until its images are stored


@dataclass(slots=True, kw_only=True)
class RunState:
    """The moving parts of one run."""

    incarnation: int = 0  # driver, at start and resume
    fence: int = 0  # driver, at attach
    policy_version: int = 0  # publisher
    next_task: int = 0  # dispatch; counts over all epochs
    running: dict[str, RunningGroup] = field(default_factory=dict)  # dispatch; in order of admission
    batch_ids: list[str] = field(default_factory=list)  # publisher; batches in the weights since the last checkpoint
    waits: dict[str, str] = field(default_factory=dict)  # each loop its own entry
    stopping: bool = False  # driver
    data_ended: bool = False  # train
    step_started_s: float | None = None  # train; None between train steps; an abandoned step leaves it as it is
    last_progress_s: float = 0.0  # whoever makes progress
    signal: Signal = field(default_factory=Signal)
    _admission: asyncio.Lock = field(default_factory=asyncio.Lock)

    @asynccontextmanager
    async def hold_admission(self, loop_name: str) -> AsyncIterator[None]:
        """Keep every other loop from admitting; the ledger then changes by commits alone."""
        if self._admission.locked():
            self.waits[loop_name] = WaitReason.SWAP
        async with self._admission:
            yield

    def made_progress(self, now_s: float) -> None:
        """Reset the watchdog and wake the loops."""
        self.last_progress_s = now_s
        self.signal.notify()
