"""All engines of one process, as the driver sees them: `types.protocols.Engines` over `BatchingEngine`s.

Owns the set and its epoch, quarantine, and which weights a new engine starts from. Knows no routing and no learner.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from medvista_ray.errors import EngineDiedError, MedVistaError, WeightsRefusedError
from medvista_ray.inference.batcher import BatchingEngine
from medvista_ray.types.protocols import EngineSet
from medvista_ray.types.sampling import WeightUpdate

_logger = logging.getLogger(__name__)


class LocalEngines:
    """A fixed number of engines; one that refuses, fails or dies leaves the set until `recover`."""

    def __init__(self, make_engine: Callable[[str], BatchingEngine], *, num_engines: int) -> None:
        """Make the engines; all are closed until the first swap.

        Args:
            make_engine: engine_id -> a new engine with its own policy.
            num_engines: how many.
        """
        self._make_engine = make_engine
        self._num_made = 0
        self._num_engines = num_engines
        self._engines = [self._make() for _ in range(num_engines)]
        self._epoch = 0
        self._served: tuple[BatchingEngine, ...] = tuple(self._engines)
        self._staged: WeightUpdate | None = None
        self._accepted: WeightUpdate | None = None  # the newest weights that a swap was asked for
        self.checksums: dict[str, str] = {}  # engine_id -> of what it loaded last

    def engine_set(self) -> EngineSet:
        """Return the engines that serve; the epoch grows when one leaves or joins."""
        serving = tuple(engine for engine in self._engines if not engine.is_dead)
        if serving != self._served:
            self._served = serving
            self._epoch += 1
        return EngineSet(epoch=self._epoch, engines=serving)

    async def stage(self, update: WeightUpdate) -> None:
        """Stage everywhere; engines that refuse what another accepts are quarantined; raise if all refuse."""
        serving = self._require_engines()
        answers = await asyncio.gather(*(engine.stage(update) for engine in serving), return_exceptions=True)
        failed = [(engine, answer) for engine, answer in zip(serving, answers, strict=True) if answer is not None]
        for _, answer in failed:
            if not isinstance(answer, MedVistaError):
                raise answer
        if len(failed) == len(serving):
            raise WeightsRefusedError(f"version {update.policy_version}: every engine refused: {failed[0][1]}")
        for engine, answer in failed:
            await self._quarantine(engine, answer)
        self._staged = update

    async def swap(self, policy_version: int) -> None:
        """Swap everywhere; an engine that fails is quarantined. Ends when each has answered or is quarantined."""
        if self._staged is not None and self._staged.policy_version == policy_version:
            self._accepted, self._staged = self._staged, None
        serving = self._require_engines()
        answers = await asyncio.gather(*(engine.swap(policy_version) for engine in serving), return_exceptions=True)
        for engine, answer in zip(serving, answers, strict=True):
            if isinstance(answer, str):
                self.checksums[engine.engine_id] = answer
            elif isinstance(answer, MedVistaError):
                await self._quarantine(engine, answer)
            else:
                raise answer
        loaded = {answer for answer in answers if isinstance(answer, str)}
        if len(loaded) > 1:
            raise WeightsRefusedError(f"version {policy_version}: engines loaded different weights: {sorted(loaded)}")

    async def recover(self) -> int:
        """Replace dead and quarantined engines by new ones on the newest accepted weights; return how many."""
        alive = [engine for engine in self._engines if not engine.is_dead]
        for engine in self._engines:
            if engine.is_dead:
                await engine.close()
                self.checksums.pop(engine.engine_id, None)
        self._engines = alive
        num_new = self._num_engines - len(alive)
        for _ in range(num_new):
            engine = self._make()
            try:
                await self._catch_up(engine)
            except BaseException:
                await engine.close()
                raise
            self._engines.append(engine)
        return num_new

    async def close(self) -> None:
        """Stop every engine."""
        for engine in self._engines:
            await engine.close()

    def _make(self) -> BatchingEngine:
        self._num_made += 1
        return self._make_engine(f"engine-{self._num_made - 1}")

    async def _catch_up(self, engine: BatchingEngine) -> None:
        if self._accepted is not None:
            await engine.stage(self._accepted)
            self.checksums[engine.engine_id] = await engine.swap(self._accepted.policy_version)
        if self._staged is not None:
            await engine.stage(self._staged)

    async def _quarantine(self, engine: BatchingEngine, why: BaseException) -> None:
        _logger.error("%s is quarantined: %s", engine.engine_id, why)
        await engine.close()

    def _require_engines(self) -> list[BatchingEngine]:
        serving = [engine for engine in self._engines if not engine.is_dead]
        if not serving:
            raise EngineDiedError("no engine serves; recover first")
        return serving
