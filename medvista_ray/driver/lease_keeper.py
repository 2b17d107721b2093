"""The lease loop: keeps the batch of a long train step leased, and says that the step moves. Knows no learner.

A hung step must end as well: after `_LONGEST_STEP` times `buffer.ack_wait_s` nothing is extended any more, the lease
runs out and the watchdog ends the run.
"""

from __future__ import annotations

import asyncio
import logging

from medvista_ray.driver.parts import Clock
from medvista_ray.driver.state import RunState
from medvista_ray.errors import LeaseExpiredError
from medvista_ray.types.protocols import ReplayBuffer

_log = logging.getLogger(__name__)
_LONGEST_STEP = 3.0  # in buffer.ack_wait_s
_EXTENDS_PER_WAIT = 3


class LeaseKeeper:
    """Extends every open lease while a train step is under way."""

    def __init__(
        self, *, buffer: ReplayBuffer, state: RunState, clock: Clock, ack_wait_s: float, no_progress_s: float
    ) -> None:
        self._buffer = buffer
        self._state = state
        self._clock = clock
        self._period_s = min(ack_wait_s, no_progress_s) / _EXTENDS_PER_WAIT  # the watchdog hears of a long step in time
        self._longest_s = _LONGEST_STEP * ack_wait_s

    async def run(self) -> None:
        """Extend until cancelled."""
        waits = self._state.waits
        while True:
            await asyncio.sleep(self._period_s)
            started_s = self._state.step_started_s
            if started_s is None:
                waits["lease"] = "no_train_step"
            elif self._clock() - started_s >= self._longest_s:
                waits["lease"] = "step_too_long"
            else:
                waits["lease"] = "extend"
                await self._extend()
                waits["lease"] = "period"

    async def _extend(self) -> None:
        for lease_id in (await self._buffer.status()).open_leases:
            try:
                await self._buffer.extend(lease_id, fence=self._state.fence)
            except LeaseExpiredError as error:  # the learner is told at its ack
                _log.info("not extended: %s", error)
            else:
                self._state.made_progress(self._clock())
