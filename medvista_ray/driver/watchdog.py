"""Two loops. Watch: leases that are overdue, processes that have died. Progress: a run that does not move.

Knows how to ask and when to give up; recreating is the matter of the pools. A recovery may hang, so the progress loop
waits for nothing but the ledger's counters, and for those not without end.
"""

from __future__ import annotations

import asyncio
import logging

from medvista_ray.driver.parts import Clock, DriverParts
from medvista_ray.driver.publisher import Publisher
from medvista_ray.driver.state import RunState
from medvista_ray.driver.telemetry import Telemetry, num_settled
from medvista_ray.errors import NoProgressError
from medvista_ray.types.delivery import BufferStatus

_log = logging.getLogger(__name__)
_LONGEST_PERIOD_S = 1.0
_STATUS_S = 5.0  # for the ledger's counters; without them the clock alone decides


class Watchdog:
    """Looks after the run once a second."""

    def __init__(
        self,
        *,
        parts: DriverParts,
        state: RunState,
        telemetry: Telemetry,
        publisher: Publisher,
        clock: Clock,
        no_progress_s: float,
        num_tasks: int,
    ) -> None:
        self._parts = parts
        self._state = state
        self._telemetry = telemetry
        self._publisher = publisher
        self._clock = clock
        self._no_progress_s = no_progress_s
        self._num_tasks = num_tasks
        self._period_s = min(_LONGEST_PERIOD_S, no_progress_s / 4)
        self._shards_lock = asyncio.Lock()
        self._num_settled = 0
        self._status: BufferStatus | None = None  # the newest that the progress loop has seen

    async def check_progress(self) -> None:
        """Look until cancelled; `NoProgressError` when nothing has moved for `train.no_progress_s`."""
        while True:
            await asyncio.sleep(self._period_s)
            deadline = asyncio.timeout(min(_STATUS_S, self._no_progress_s))
            try:
                async with deadline:
                    self._status = await self._parts.buffer.status()
            except TimeoutError:
                if not deadline.expired():
                    raise
                _log.warning("the replay buffer has not said its counters in time")
            self._check_progress()

    async def run(self) -> None:
        """Expire leases and recreate what has died until cancelled."""
        while True:
            await asyncio.sleep(self._period_s)
            self._state.waits["watch"] = "expire"
            returned = await self._parts.buffer.expire()
            if returned:
                _log.warning("%d groups went back, their lease was overdue", len(returned))
                self._telemetry.count("buffer/expired/groups", len(returned))
                self._state.signal.notify()
            status = await self._parts.buffer.status()
            if not self._publisher.engines_lock.locked():  # a swap quarantines by itself and is not waited for here
                self._state.waits["watch"] = "recover"
                await self._publisher.recover_engines()
            await self.recover_shards()
            self._telemetry.show(status, num_tasks=self._num_tasks, waits=self._state.waits)
            self._state.waits["watch"] = "period"

    async def recover_all(self) -> None:
        """Recreate what has died, shards and engines."""
        await self.recover_shards()
        await self._publisher.recover_engines()

    async def recover_shards(self) -> None:
        """Recreate dead shards and tell them which engines serve; callers that come together share one recovery."""
        async with self._shards_lock:
            num_recovered = await self._parts.env_pool.recover()
            if num_recovered:
                _log.warning("%d env shards were recreated", num_recovered)
                self._telemetry.count("env/recovered/shards", num_recovered)
                await self._publisher.push_engine_set()

    def _check_progress(self) -> None:
        now_s, state = self._clock(), self._state
        if self._status is not None and num_settled(self._status) != self._num_settled:
            self._num_settled = num_settled(self._status)
            state.last_progress_s = now_s
        if now_s - state.last_progress_s >= self._no_progress_s:
            raise NoProgressError(self._describe(now_s))

    def _describe(self, now_s: float) -> str:
        loops = "; ".join(f"{name} waits for {reason}" for name, reason in sorted(self._state.waits.items()))
        running = ", ".join(
            f"{group_id} (attempt {group.attempt}, {now_s - group.started_s:.0f} s)"
            for group_id, group in list(self._state.running.items())[:8]
        )
        return (
            f"no group settled, none committed and no train step for {self._no_progress_s:g} s "
            f"(train.no_progress_s): {loops}. {self._describe_ledger()}. Running: {running or 'none'}"
        )

    def _describe_ledger(self) -> str:
        status = self._status
        if status is None:
            return "The replay buffer does not answer"
        counts = ", ".join(f"{name} {count}" for name, count in status.counts.items() if count)
        return f"Ledger: {counts}; capacity {status.capacity}, policy_version {status.policy_version}"
