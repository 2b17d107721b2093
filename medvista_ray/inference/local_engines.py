"""All engines of a run, as the driver sees them: `types.protocols.Engines` over engines here or in other processes.

Owns the set and its epoch, quarantine, and which weights a new engine starts from. Knows no routing and no learner.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from medvista_ray.errors import EngineDiedError, MedVistaError, WeightsRefusedError
from medvista_ray.types.protocols import Engine, EngineSet
from medvista_ray.types.sampling import WeightUpdate

_logger = logging.getLogger(__name__)


class OwnedEngine(Engine, Protocol):
    """An engine with its life: `BatchingEngine`, or the handle of one in another process."""

    @property
    def is_dead(self) -> bool:
        """Return whether every further call answers `EngineDiedError`."""

    async def close(self) -> None:
        """End it; may be called again."""


class LocalEngines:
    """A fixed number of engines; one that refuses, fails or dies leaves the set until `recover`."""

    def __init__(self, make_engine: Callable[[str], OwnedEngine], *, num_engines: int) -> None:
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
        self._served: tuple[OwnedEngine, ...] = tuple(self._engines)
        self._num_replaced = 0  # since the last `recover`
        self._staged: WeightUpdate | None = None
        self._accepted: WeightUpdate | None = None  # the newest weights that a swap was asked for
        self.checksums: dict[str, str] = {}  # engine_id -> of what it loaded last

    def engine_set(self) -> EngineSet:
        """Return the engines that serve; the epoch grows when one leaves or joins."""
        serving = tuple(self._serving())
        if serving != self._served:
            self._served = serving
            self._epoch += 1
        return EngineSet(epoch=self._epoch, engines=serving)

    async def stage(self, update: WeightUpdate) -> None:
        """Stage everywhere; engines that refuse what another accepts are quarantined; raise if all refuse."""
        if all(engine.is_dead for engine in self._engines):
            self._num_replaced += await self._replace_dead()  # a publish may come before anybody has asked to recover
        serving = self._serving()
        if not serving:
            raise EngineDiedError("no engine serves, and no new one could be started")
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
        """Swap everywhere; an engine that fails is quarantined. Ends when each has answered or is quarantined.

        Without a living engine nothing is left to do: those that `recover` makes start from the staged weights.
        """
        if self._staged is not None and self._staged.policy_version == policy_version:
            self._accepted, self._staged = self._staged, None
        serving = self._serving()
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

    async def quarantine(self, engine_id: str, why: str) -> None:
        """Take an engine out of the set until `recover` makes another; one that has left is left alone."""
        for engine in self._serving():
            if engine.engine_id == engine_id:
                await self._quarantine(engine, why)

    async def recover(self) -> int:
        """Replace dead and quarantined engines by new ones on the newest accepted weights; return how many.

        What `stage` had to replace since the last call is counted too.
        """
        self._num_replaced += await self._replace_dead()
        num_replaced, self._num_replaced = self._num_replaced, 0
        return num_replaced

    async def close(self) -> None:
        """Stop every engine."""
        for engine in self._engines:
            await engine.close()

    async def _replace_dead(self) -> int:
        for engine in self._engines:
            if engine.is_dead:
                await engine.close()
                self.checksums.pop(engine.engine_id, None)
        self._engines = self._serving()
        num_new = 0
        for _ in range(self._num_engines - len(self._engines)):
            engine = self._make()
            try:
                await self._catch_up(engine)
            except EngineDiedError as error:
                _logger.warning("%s died while it started, the next look tries again: %s", engine.engine_id, error)
                await engine.close()
            except BaseException:
                await engine.close()
                raise
            else:
                self._engines.append(engine)
                num_new += 1
        return num_new

    def _make(self) -> OwnedEngine:
        self._num_made += 1
        return self._make_engine(f"engine-{self._num_made - 1}")

    async def _catch_up(self, engine: OwnedEngine) -> None:
        if self._accepted is not None:
            await engine.stage(self._accepted)
            self.checksums[engine.engine_id] = await engine.swap(self._accepted.policy_version)
        if self._staged is not None:
            await engine.stage(self._staged)

    async def _quarantine(self, engine: OwnedEngine, why: object) -> None:
        _logger.error("%s is quarantined: %s", engine.engine_id, why)
        await engine.close()

    def _serving(self) -> list[OwnedEngine]:
        return [engine for engine in self._engines if not engine.is_dead]
