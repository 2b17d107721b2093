"""Publishes weights: write, stage, record, swap; and guards the parity of engines and learner.

    learner.write_weights -> engines.stage -> buffer.publish -> engines.swap -> parity -> border
       (serving goes on)      (may refuse)    |-------- nothing is admitted --------------------|

Knows the order of these calls, not what weights are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from medvista_ray.driver.parts import DriverParts, Probe
from medvista_ray.driver.state import RunState
from medvista_ray.driver.telemetry import Telemetry
from medvista_ray.errors import EngineDiedError, ParityError, WeightsRefusedError
from medvista_ray.types.delivery import TrainReport

_log = logging.getLogger(__name__)


class Publisher:
    """Takes the learner's weights to the engines, one version at a time."""

    def __init__(
        self,
        *,
        parts: DriverParts,
        state: RunState,
        telemetry: Telemetry,
        max_logprob_diff: float,  # nats
        probe_every: int,  # publishes
        probe: Probe | None,
    ) -> None:
        self._parts = parts
        self._state = state
        self._telemetry = telemetry
        self._max_logprob_diff = max_logprob_diff
        self._probe_every = probe_every
        self._probe = probe
        self._num_published = 0
        self._epoch: int | None = None  # of the engine set that the shards know
        self._report_was_bad = False
        self.engines_lock = asyncio.Lock()  # a swap and a recovery exclude each other

    async def start(self) -> None:
        """Load the learner's weights on every engine as the current version, without a record; then open the shards."""
        async with self.engines_lock:
            await self._stage(self._state.policy_version)
            await self._swap(self._state.policy_version)
            await self._push_engine_set(force=True)

    async def publish(self, report: TrainReport, *, at_border: Callable[[TrainReport], Awaitable[None]]) -> None:
        """Publish the weights that `report` has made, then call `at_border` before anything is admitted again.

        Raises:
            WeightsRefusedError: every engine refused them twice.
            ParityError: engines and learner still disagree after a recovery.
        """
        state, version = self._state, report.train_from_version + 1
        async with self.engines_lock:
            state.waits["publish"] = "stage"
            await self._stage(version)
            async with state.hold_admission("publish"):
                state.waits["publish"] = "swap"
                await self._parts.buffer.publish(version, batch_id=report.lease_id, fence=state.fence)
                state.policy_version = version
                state.batch_ids.append(report.lease_id)
                await self._swap(version)
                await self._push_engine_set()
                await self._check_parity(report)
                state.waits["publish"] = "checkpoint"
                await at_border(report)
        state.waits["publish"] = "no_train_step"

    async def _stage(self, version: int) -> None:
        """Write and stage weights while the engines serve; if none of them takes them, do it once more."""
        try:
            await self._parts.engines.stage(await self._parts.learner.write_weights(version))
        except (WeightsRefusedError, EngineDiedError) as error:
            _log.warning("no engine has staged version %d, it is written once more: %s", version, error)
            self._telemetry.count("engine/refused/publishes")
            await self._recover()
            await self._parts.engines.stage(await self._parts.learner.write_weights(version))

    async def _swap(self, version: int) -> None:
        """Let every engine load what it has staged; if none is left to do so, recreate them and do it once more."""
        try:
            await self._parts.engines.swap(version)
        except EngineDiedError as error:
            _log.warning("no engine has loaded version %d, they are recreated: %s", version, error)
            await self._recover()
            await self._stage(version)
            await self._parts.engines.swap(version)

    async def push_engine_set(self) -> None:
        """Tell every shard which engines serve, new shards among them."""
        await self._push_engine_set(force=True)

    async def _push_engine_set(self, *, force: bool = False) -> None:
        engine_set = self._parts.engines.engine_set()
        if force or engine_set.epoch != self._epoch:
            await self._parts.env_pool.set_engines(engine_set)
            self._epoch = engine_set.epoch

    async def recover_engines(self) -> None:
        """Recreate dead and quarantined engines on the newest accepted weights."""
        async with self.engines_lock:
            await self._recover()

    async def _recover(self) -> None:
        num_recovered = await self._parts.engines.recover()
        if num_recovered:
            _log.warning("%d engines were recreated", num_recovered)
            self._telemetry.count("engine/recovered/engines", num_recovered)
        await self._push_engine_set()

    async def _check_parity(self, report: TrainReport) -> None:
        if report.max_abs_logprob_diff is not None:
            await self._check_report(report.max_abs_logprob_diff, report.train_from_version)
        self._num_published += 1
        if self._probe is not None and (self._num_published - 1) % self._probe_every == 0:
            self._state.waits["publish"] = "probe"
            await self._check_probe(self._probe, self._state.policy_version)

    async def _check_report(self, diff: float, version: int) -> None:
        """Judge what a train step measured; the second excess in a row ends the run, the first recovers engines.

        A publish has just given every engine freshly verified weights, so the next measurement shows if that helped.
        """
        is_bad = not diff <= self._max_logprob_diff  # NaN is bad too
        if is_bad:
            text = self._describe(diff, f"on the tokens of version {version}")
            if self._report_was_bad:
                raise ParityError(f"{text}, and so they did one measurement before")
            _log.warning("%s; engines are recovered, one more excess fails the run", text)
            await self._recover()
        self._report_was_bad = is_bad

    async def _check_probe(self, probe: Probe, version: int) -> None:
        """Sample on the engines, compare with the learner; an excess reloads all engines and is measured again."""
        diff = await self._measure(probe, version)
        if diff <= self._max_logprob_diff:
            return
        _log.warning("%s; engines load the weights again", self._describe(diff, f"in the probe of version {version}"))
        await self._recover()
        await self._stage(version)
        await self._swap(version)
        await self._push_engine_set()
        diff = await self._measure(probe, version)
        if not diff <= self._max_logprob_diff:
            text = self._describe(diff, f"in the probe of version {version}")
            raise ParityError(f"{text}, also after the engines had loaded the weights again")

    async def _measure(self, probe: Probe, version: int) -> float:
        diff = await probe(version)
        self._telemetry.on_parity(diff)
        return diff

    def _describe(self, diff: float, where: str) -> str:
        return (
            f"engine and learner differ by {diff:.3g} nats {where}, "
            f"the bound learner.max_logprob_diff is {self._max_logprob_diff:g}"
        )
