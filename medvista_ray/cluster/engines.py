"""Engines in other processes: a handle that shards call directly, and their set as the driver sees it.

Staging, swapping, quarantine and recovery are those of `LocalEngines`; only what an engine is differs.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

import ray

from medvista_ray.cluster.actors import ActorHome
from medvista_ray.cluster.faults import answer_of, life_of
from medvista_ray.errors import EngineDiedError
from medvista_ray.inference.local_engines import LocalEngines
from medvista_ray.types.sampling import GenerateRequest, GenerateResult, WeightUpdate

_log = logging.getLogger(__name__)


class RemoteEngine:
    """One engine. The driver's handle knows whether it lives; pickled, it is the bare handle that a shard calls."""

    def __init__(
        self,
        engine_id: str,
        actor: Any,
        *,
        start: Callable[[], Awaitable[ActorHome]] | None = None,
    ) -> None:
        """Wrap an actor.

        Args:
            engine_id: its name in logs and routing.
            actor: the actor.
            start: waits until the policy is loaded; the driver's handle only.
        """
        self.engine_id = engine_id
        self._actor = actor
        self._life: Future[None] | None = None
        self._start = start
        self._home: ActorHome | None = None
        self._is_gone = False

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteEngine, (self.engine_id, self._actor)

    @property
    def is_dead(self) -> bool:
        """Return whether the process has ended, or a call has found it gone."""
        return self._is_gone or (self._life is not None and self._life.done())

    async def wait_started(self) -> ActorHome:
        """Wait until the policy is loaded; raise what went wrong."""
        assert self._start is not None, "only the driver's handle knows"
        if self._home is None:
            self._home = await self._watched(self._start())
            self._life = life_of(self._actor)
        return self._home

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        """Sample one action; `EngineDiedError` when the engine is gone."""
        result: GenerateResult = await self._ask(self._actor.generate.remote(request))
        return result

    async def stage(self, update: WeightUpdate) -> None:
        """Read and verify weights while serving."""
        await self._ask(self._actor.stage.remote(update))

    async def swap(self, policy_version: int) -> str:
        """Load the staged weights; return the checksum of what is loaded."""
        checksum: str = await self._ask(self._actor.swap.remote(policy_version))
        return checksum

    async def close(self) -> None:
        """End the process; what waits there fails with `EngineDiedError`."""
        if not self._is_gone and self._life is not None and self._life.done():
            _log.warning("%s: %s", self.engine_id, self._life.exception() or "its batching task has ended")
        self._is_gone = True
        ray.kill(self._actor)

    async def _ask(self, call: Any) -> Any:
        return await self._watched(answer_of(call, who=self.engine_id, died=EngineDiedError))

    async def _watched(self, answer: Awaitable[Any]) -> Any:
        try:
            return await answer
        except EngineDiedError:
            self._is_gone = True
            raise


class RemoteEngines(LocalEngines):
    """A fixed number of engines in their own processes."""

    async def wait_started(self) -> tuple[ActorHome, ...]:
        """Wait for every engine."""
        engines: tuple[RemoteEngine, ...] = self.engine_set().engines
        return tuple([await engine.wait_started() for engine in engines])
