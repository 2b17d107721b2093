"""Route turns to engines inside one shard. Knows engine handles and nothing of how they run; owns no tasks.

An episode stays on its engine; a new one takes the engine with the fewest episodes of this router. When an engine dies
under a turn, the turn is issued once more elsewhere, from the same tokens. Without an engine a turn waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from medvista_ray.errors import EngineDiedError
from medvista_ray.types.delivery import WaitReason
from medvista_ray.types.protocols import Engine, EngineSet
from medvista_ray.types.sampling import GenerateRequest, GenerateResult

_logger = logging.getLogger(__name__)


class Router:
    """A `PolicyClient` over the engines that the driver says serve."""

    def __init__(self, engines: EngineSet | None = None, *, no_engine_wait_s: float) -> None:
        """Start with a set, or with none.

        Args:
            engines: the first set.
            no_engine_wait_s: how long a turn waits without any engine; the group's deadline, which may end it earlier.
        """
        self._no_engine_wait_s = no_engine_wait_s
        self._epoch = -1
        self._engines: dict[str, Engine] = {}
        self._homes: dict[str, dict[int, str]] = {}  # group_id -> member -> engine_id
        self._num_waiting = 0
        self._changed = asyncio.Event()
        if engines is not None:
            self.set_engines(engines)

    def set_engines(self, engines: EngineSet) -> None:
        """Take a set; an older epoch is ignored, an equal one brings back what a broken connection made look dead."""
        if engines.epoch < self._epoch:
            return
        self._epoch = engines.epoch
        self._engines = {engine.engine_id: engine for engine in engines.engines}
        if self._engines:
            self._changed.set()

    def forget_group(self, group_id: str) -> None:
        """Free the routes of a group that has ended."""
        self._homes.pop(group_id, None)

    @property
    def wait_reasons(self) -> Counter[WaitReason]:
        """Count the turns that wait, by reason."""
        return Counter({WaitReason.NO_ENGINE: self._num_waiting}) if self._num_waiting else Counter()

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        """Sample one action; `EngineDiedError` after two dead engines, or when no engine came in time."""
        engine = await self._engine_of(request)
        try:
            return await engine.generate(request)
        except EngineDiedError as error:
            _logger.warning("%s died under group %s: %s", engine.engine_id, request.group_id, error)
            if self._engines.get(engine.engine_id) is engine:
                del self._engines[engine.engine_id]  # until the driver says that it lives
        return await (await self._engine_of(request)).generate(request)

    async def _engine_of(self, request: GenerateRequest) -> Engine:
        if not self._engines:
            await self._wait_for_engines()
        members = self._homes.setdefault(request.group_id, {})
        home = members.get(request.member)
        if home is None or home not in self._engines:
            load = Counter(engine_id for homes in self._homes.values() for engine_id in homes.values())
            home = min(self._engines, key=lambda engine_id: load[engine_id])  # the first of equals
            members[request.member] = home
        return self._engines[home]

    async def _wait_for_engines(self) -> None:
        self._num_waiting += 1
        try:
            async with asyncio.timeout(self._no_engine_wait_s):
                while not self._engines:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise EngineDiedError(f"{WaitReason.NO_ENGINE}: no engine for {self._no_engine_wait_s:g} s") from None
        finally:
            self._num_waiting -= 1
