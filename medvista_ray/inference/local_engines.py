"""All engines of a run, as the driver sees them: `types.protocols.Engines` over engines here or in other processes.

Owns the set and its epoch, quarantine, and which weights a new engine starts from. Knows no routing and no learner.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from medvista_ray.errors import EngineDiedError, MedVistaError, PlacementError, WeightsRefusedError
from medvista_ray.types.protocols import Engine, EngineSet
from medvista_ray.types.sampling import WeightUpdate

_logger = logging.getLogger(__name__)
ANSWER_S = 120.0  # to stage, or to swap: one running batch and a full set of weights; below `train.no_progress_s`
_NO_ROOM_S = 60.0  # until a replacement that found no room is tried again; each try holds up the next publish


class OwnedEngine(Engine, Protocol):
    """An engine with its life: `BatchingEngine`, or the handle of one in another process."""

    @property
    def is_dead(self) -> bool:
        """Return whether every further call answers `EngineDiedError`."""

    async def wait_started(self) -> object:
        """Wait until it can take weights; `PlacementError` when it finds no room."""

    async def close(self) -> None:
        """End it; may be called again."""


class LocalEngines:
    """A fixed number of engines; one that refuses, fails or dies leaves the set until `recover`."""

    def __init__(
        self, make_engine: Callable[[str], OwnedEngine], *, num_engines: int, answer_s: float = ANSWER_S
    ) -> None:
        """Make the engines; all are closed until the first swap.

        Args:
            make_engine: engine_id -> a new engine with its own policy.
            num_engines: how many.
            answer_s: how long one of them may take to stage or to swap.
        """
        self._make_engine = make_engine
        self._num_made = 0
        self._num_engines = num_engines
        self._answer_s = answer_s
        self._no_room_until_s = 0.0  # clock of the event loop
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
        self._staged = None
        if self._accepted is not None and update.policy_version <= self._accepted.policy_version:
            self._accepted = None  # the learner has gone back: that history is lost, and the files of it with it
        num_new = await self._replace_all() if not self._serving() else 0
        serving = self._serving()
        answers = await asyncio.gather(*(self._stage_one(engine, update) for engine in serving), return_exceptions=True)
        failed = [(engine, answer) for engine, answer in zip(serving, answers, strict=True) if answer is not None]
        refusals = [answer for _, answer in failed if isinstance(answer, WeightsRefusedError)]
        is_staged = len(failed) < len(serving)
        for engine, answer in failed:
            if not isinstance(answer, MedVistaError):
                raise answer
            if isinstance(answer, PlacementError):
                self._found_no_room()
            if is_staged or answer not in refusals:  # what all refuse is the fault of the weights
                await self._quarantine(engine, answer)
        if not is_staged:
            if refusals:
                raise WeightsRefusedError(f"version {update.policy_version}: every engine refused: {refusals[0]}")
            raise failed[0][1]
        self._num_replaced += max(num_new - len(failed), 0)
        self._staged = update

    async def swap(self, policy_version: int) -> None:
        """Swap everywhere; an engine that fails is quarantined. Ends when each has answered or is quarantined.

        Without a living engine nothing is left to do: those that `recover` makes start from the staged weights.
        """
        if self._staged is not None and self._staged.policy_version == policy_version:
            self._accepted, self._staged = self._staged, None
        serving = self._serving()
        answers = await asyncio.gather(
            *(self._swap_one(engine, policy_version) for engine in serving), return_exceptions=True
        )
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
        """Make an engine for each that is gone, on the newest accepted weights; return how many serve."""
        await self._drop_dead()
        if self._engines and asyncio.get_running_loop().time() < self._no_room_until_s:
            return 0
        num_new = 0
        for _ in range(self._num_engines - len(self._engines)):
            engine = self._make()
            try:
                await self._catch_up(engine)
            except EngineDiedError as error:
                _logger.warning("%s died while it started, the next look tries again: %s", engine.engine_id, error)
                await engine.close()
            except PlacementError as error:
                await engine.close()
                if not self._engines:
                    raise
                _logger.warning("%d engines go on, there is no room for more: %s", len(self._engines), error)
                self._found_no_room()
                break
            except BaseException:
                await engine.close()
                raise
            else:
                self._engines.append(engine)
                num_new += 1
        return num_new

    def _found_no_room(self) -> None:
        self._no_room_until_s = asyncio.get_running_loop().time() + _NO_ROOM_S

    async def _replace_all(self) -> int:
        """Make every engine anew, without weights: the caller has some for them."""
        await self._drop_dead()
        self._engines = [self._make() for _ in range(self._num_engines)]
        return self._num_engines

    async def _drop_dead(self) -> None:
        for engine in self._engines:
            if engine.is_dead:
                await engine.close()
                self.checksums.pop(engine.engine_id, None)
        self._engines = self._serving()

    def _make(self) -> OwnedEngine:
        self._num_made += 1
        return self._make_engine(f"engine-{self._num_made - 1}")

    async def _catch_up(self, engine: OwnedEngine) -> None:
        if self._accepted is not None:
            await self._stage_one(engine, self._accepted)
            self.checksums[engine.engine_id] = await self._swap_one(engine, self._accepted.policy_version)
        if self._staged is not None:
            await self._stage_one(engine, self._staged)

    async def _stage_one(self, engine: OwnedEngine, update: WeightUpdate) -> None:
        await engine.wait_started()  # has a deadline of its own
        async with self._deadline(engine, "staged", update.policy_version):
            await engine.stage(update)

    async def _swap_one(self, engine: OwnedEngine, policy_version: int) -> str:
        async with self._deadline(engine, "swapped to", policy_version):
            return await engine.swap(policy_version)

    @asynccontextmanager
    async def _deadline(self, engine: OwnedEngine, what: str, policy_version: int) -> AsyncIterator[None]:
        """Give an engine its time; one that does not answer counts as dead, and who hears that quarantines it."""
        deadline = asyncio.timeout(self._answer_s)
        try:
            async with deadline:
                yield
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise EngineDiedError(
                f"{engine.engine_id} has not {what} version {policy_version} within {self._answer_s:g} s"
            ) from error

    async def _quarantine(self, engine: OwnedEngine, why: object) -> None:
        _logger.error("%s is quarantined: %s", engine.engine_id, why)
        await engine.close()

    def _serving(self) -> list[OwnedEngine]:
        return [engine for engine in self._engines if not engine.is_dead]
