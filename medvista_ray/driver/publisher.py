"""Publishes weights: write, stage, record, swap; and guards the parity of engines and learner.

    learner.write_weights -> engines.stage -> buffer.publish -> engines.swap -> parity -> border
       (serving goes on)      (may refuse)    |-------- nothing is admitted --------------------|

Knows the order of these calls, not what weights are.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from medvista_ray.driver.parts import DriverParts, Probe
from medvista_ray.driver.state import RunState
from medvista_ray.driver.telemetry import Telemetry
from medvista_ray.errors import EngineDiedError, ParityError, WeightsRefusedError
from medvista_ray.types.delivery import TrainReport

_log = logging.getLogger(__name__)
_REPEAT_S = 10.0  # between two times that the shards are told of a set that has not changed


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
        self._num_since_probe = probe_every  # publishes; the first is probed
        self._epoch: int | None = None  # of the engine set that the shards know
        self._excused_version: int | None = None  # an excess was seen; another one on newer tokens fails the run
        self._repeat_at_s = 0.0  # clock of the event loop
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
            ParityError: engines and learner disagree again, after engines were replaced.
        """
        state, version = self._state, report.train_from_version + 1
        if report.max_abs_logprob_diff is not None:
            report = replace(report, max_abs_logprob_diff=_finite(report.max_abs_logprob_diff))
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
        """Let every engine load what it has staged; if none is left, recreate them before anything is admitted."""
        await self._parts.engines.swap(version)
        if not self._parts.engines.engine_set().engines:
            _log.warning("no engine has loaded version %d, they are recreated", version)
            await self._recover()  # they start from what was staged, which is accepted

    async def push_engine_set(self) -> None:
        """Tell every shard which engines serve, new shards among them."""
        await self._push_engine_set(force=True)

    async def _push_engine_set(self, *, force: bool = False) -> None:
        engine_set = self._parts.engines.engine_set()
        if force or engine_set.epoch != self._epoch:
            await self._parts.env_pool.set_engines(engine_set)
            self._epoch = engine_set.epoch

    async def recover_engines(self) -> None:
        """Recreate dead and quarantined engines on the newest accepted weights; tell the shards again which serve.

        A shard that lost the connection to a living engine has dropped it, and gets it back by being told.
        """
        async with self.engines_lock:
            await self._recover()
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._repeat_at_s:
            self._repeat_at_s = now_s + _REPEAT_S
            await self._push_engine_set(force=True)  # outside the lock: an older set that arrives late is ignored

    async def _recover(self) -> None:
        num_recovered = await self._parts.engines.recover()
        if num_recovered:
            _log.warning("%d engines were recreated", num_recovered)
            self._telemetry.count("engine/recovered/engines", num_recovered)
        await self._push_engine_set()

    async def _check_parity(self, report: TrainReport) -> None:
        """Judge what the train step has measured, and probe when it is time or the train step gives a reason to."""
        version, diff = self._state.policy_version, report.max_abs_logprob_diff
        excess = None if diff is None else self._judge_report(diff, report.train_from_version)
        self._num_since_probe += 1
        replaced = False
        if self._probe is not None and (excess is not None or self._num_since_probe >= self._probe_every):
            self._state.waits["publish"] = "probe"
            replaced = await self._check_probe(self._probe, version)
        elif excess is not None:  # nobody can say which engine it was
            await self._replace({engine.engine_id: excess for engine in self._parts.engines.engine_set().engines})
            replaced = True
        if excess is not None:
            # While they were found out, replaced engines have sampled tokens of the version just published.
            self._excused_version = version if replaced else report.train_from_version

    def _judge_report(self, diff: float, version: int) -> str | None:
        """Return what is wrong for the first time on the tokens of a version; a repetition ends the run."""
        if diff <= self._max_logprob_diff:
            self._excused_version = None
            return None
        text = self._describe(diff, f"on the tokens of version {version}")
        if self._excused_version is None:
            _log.warning("%s; the engine is looked for, one more excess fails the run", text)
            return text
        if version > self._excused_version:
            raise ParityError(f"{text}, and so they did one measurement before")
        _log.warning("%s; engines that are replaced by now have sampled some of them", text)
        return None

    async def _check_probe(self, probe: Probe, version: int) -> bool:
        """Compare engines with the learner; replace those that differ, measure again; return whether there were any."""
        where = f"in the probe of version {version}"
        wrong = await self._measure(probe, version)
        if not wrong:
            return False
        await self._replace({name: self._describe(diff, where) for name, diff in wrong.items()})
        for engine_id, diff in (await self._measure(probe, version)).items():
            text = self._describe(diff, f"{where} ({engine_id})")
            raise ParityError(f"{text}, also after engines were replaced")
        return True

    async def _measure(self, probe: Probe, version: int) -> dict[str, float]:
        """Return the engines that differ by more than the bound; without any answer the next publish probes again."""
        report = await probe(version)
        if report.max_abs_logprob_diff is None:
            _log.warning("the probe of version %d has measured nothing: no engine serves", version)
            self._num_since_probe = self._probe_every
            return {}
        self._num_since_probe = 0
        self._telemetry.on_parity(_finite(report.max_abs_logprob_diff))
        return {name: diff for name, diff in report.diffs.items() if not diff <= self._max_logprob_diff}

    async def _replace(self, reasons: Mapping[str, str]) -> None:
        """Quarantine engines, by engine_id, and recreate them."""
        for engine_id, why in reasons.items():
            await self._parts.engines.quarantine(engine_id, why)
        self._telemetry.count("engine/quarantined/engines", len(reasons))
        await self._recover()

    def _describe(self, diff: float, where: str) -> str:
        amount = f"{diff:.3g} nats" if diff < sys.float_info.max else "what is no finite number"
        return (
            f"engine and learner differ by {amount} {where}, "
            f"the bound learner.max_logprob_diff is {self._max_logprob_diff:g}"
        )


def _finite(diff: float) -> float:
    """Return the number itself, or the largest there is: JSON, which keeps it, knows neither NaN nor infinity."""
    return diff if math.isfinite(diff) else sys.float_info.max
