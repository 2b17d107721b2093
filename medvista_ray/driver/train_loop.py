"""The train loop: one batch, one train step, one published version, a checkpoint now and then.

Knows when the learner may step and when a border between steps is; not what a step does.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from medvista_ray.driver.parts import Clock, DriverParts
from medvista_ray.driver.publisher import Publisher
from medvista_ray.driver.state import RunState
from medvista_ray.driver.telemetry import Telemetry
from medvista_ray.errors import LeaseExpiredError
from medvista_ray.types.delivery import TrainReport, WaitReason

_log = logging.getLogger(__name__)
_FIRST_POLL_S, _LAST_POLL_S = 0.005, 0.5  # a receipt wakes the loop at once; the poll is for what gives no receipt


class TrainLoop:
    """Asks the learner for train steps until the data end or somebody stops the run."""

    def __init__(
        self,
        *,
        parts: DriverParts,
        state: RunState,
        telemetry: Telemetry,
        publisher: Publisher,
        at_border: Callable[[], Awaitable[None]],  # between train steps, admission held
        clock: Clock,
    ) -> None:
        self._parts = parts
        self._state = state
        self._telemetry = telemetry
        self._publisher = publisher
        self._at_border = at_border
        self._clock = clock

    async def run(self) -> None:
        """Train until `end_of_data` or a stop; a lease that went back costs its train step and nothing else."""
        state, poll_s = self._state, _FIRST_POLL_S
        while not state.stopping:
            mark = state.signal.mark()
            report = await self._step()
            if isinstance(report, TrainReport):
                await self._finish(report)
                poll_s = _FIRST_POLL_S
                continue
            state.waits["train"] = report
            if report == WaitReason.END_OF_DATA:
                state.data_ended = True
                return
            if report == WaitReason.STALE_DROPPED:
                state.signal.notify()  # slots are free and tasks wait to be issued again
            woken = await state.signal.wait(mark, timeout_s=poll_s)
            poll_s = _FIRST_POLL_S if woken else min(2 * poll_s, _LAST_POLL_S)

    async def _step(self) -> TrainReport | str:
        """Run one train step, or return why there is none."""
        state = self._state
        state.waits["train"] = "train_step"
        state.step_started_s = self._clock()
        try:
            answer = await self._parts.learner.train_step(fence=state.fence, train_from_version=state.policy_version)
        except LeaseExpiredError as error:
            state.step_started_s = None
            _log.warning("the batch went back before it was trained, raise buffer.ack_wait_s: %s", error)
            self._telemetry.count("learner/lease_expired/steps")
            return "lease_expired"
        state.step_started_s = None
        return answer if isinstance(answer, TrainReport) else answer.reason.value

    async def _finish(self, report: TrainReport) -> None:
        self._state.waits["train"] = "publish"
        await self._publisher.publish(report, at_border=self._border)
        self._state.made_progress(self._clock())

    async def _border(self, report: TrainReport) -> None:
        tools = await self._parts.read_tools()
        self._telemetry.on_step(report, await self._parts.buffer.status(), tools=tools)
        await self._at_border()
