"""Owns every task of a run: names, holds, cancels and awaits them, and keeps the first failure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

_log = logging.getLogger(__name__)


class TaskOwner:
    """The one owner of all tasks of a run; the first exception of any of them is the exception of the run."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()

    def start(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """Run a coroutine as a named task until it ends or `cancel_all`."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        if self._failure is None:
            self._failure = error
            self._failed.set()
        else:  # the first one is raised; the others may explain it
            _log.warning("%s failed as well: %s: %s", task.get_name(), type(error).__name__, error)

    async def wait(self, task: asyncio.Task[None], *, or_event: asyncio.Event | None = None) -> None:
        """Wait until `task` has ended or the event is set; raise the first failure of any task."""
        events = [self._failed] if or_event is None else [self._failed, or_event]
        waiters = [asyncio.create_task(event.wait(), name="wait") for event in events]
        try:
            await asyncio.wait([task, *waiters], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiter in waiters:
                waiter.cancel()
            await asyncio.gather(*waiters, return_exceptions=True)
        await asyncio.sleep(0)  # done callbacks of the task run first
        if self._failure is not None:
            raise self._failure

    async def cancel_all(self) -> None:
        """Cancel what still runs and wait until it has ended; may be called twice."""
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
