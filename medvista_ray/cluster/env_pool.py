"""The env shards of a run, each in its own process: `types.protocols.EnvPool`.

    run_group --(least-loaded living shard with a free slot)--> shard --> receipt
    a shard dies --> ShardDiedError for its groups, the others go on --> recover() --> a new shard, the same engine set

Owns which group runs where, and no tasks. A call waits only for a slot; receipts, `recover` and `close` give one. A
shard that does not answer a call without work has frozen, and a frozen one is dead: it is killed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import ray

from medvista_ray.cluster.actors import ActorHome
from medvista_ray.cluster.faults import answer_of
from medvista_ray.errors import MedVistaError, PlacementError, ShardDiedError
from medvista_ray.types.delivery import GroupWork, Receipt
from medvista_ray.types.protocols import EngineSet

_log = logging.getLogger(__name__)
_CLOSE_S = 3.0
_ANSWER_S = 30.0  # for a call without work; an env's own code may hold the shard's event loop for a while


@dataclass(kw_only=True, eq=False)
class ShardHandle:
    """One shard: its actor, its life, its groups."""

    name: str
    actor: Any
    home: ActorHome
    life: Future[None]  # ends when the process does
    groups: set[str] = field(default_factory=set)
    is_given_up: bool = False  # it was killed; its process may take a moment to end

    @property
    def is_dead(self) -> bool:
        """Return whether the process has ended, or was killed because it did not answer."""
        return self.is_given_up or self.life.done()

    async def ask(self, call: Any) -> Any:
        """Await a call; `ShardDiedError` when the process is gone."""
        return await answer_of(call, who=self.name, died=ShardDiedError)

    async def ask_soon(self, call: Any) -> None:
        """Await a call without work; a shard that does not answer in time is killed, and `ShardDiedError`."""
        deadline = asyncio.timeout(_ANSWER_S)
        try:
            async with deadline:
                await self.ask(call)
        except TimeoutError:
            if not deadline.expired():
                raise
            self.is_given_up = True
            ray.kill(self.actor)
            raise ShardDiedError(f"{self.name} has not answered for {_ANSWER_S:g} s and was killed") from None


class RemoteEnvPool:
    """Spreads groups over shards; `start` makes the first ones."""

    def __init__(
        self, start_shard: Callable[[str], Awaitable[ShardHandle]], *, num_shards: int, slots_per_shard: int
    ) -> None:
        """Know how to start a shard of a name."""
        self._start_shard = start_shard
        self._num_shards = num_shards
        self._slots_per_shard = slots_per_shard
        self._shards: list[ShardHandle] = []
        self._num_made = 0
        self._engines: EngineSet | None = None
        self._changed = asyncio.Event()
        self._is_closed = False

    @property
    def num_slots(self) -> int:
        """Groups that can run at once."""
        return self._num_shards * self._slots_per_shard

    @property
    def homes(self) -> tuple[ActorHome, ...]:
        """Return the processes of the living shards."""
        return tuple(shard.home for shard in self._living())

    @property
    def loads(self) -> dict[int, int]:
        """Count the groups of each living shard, by process id."""
        return {shard.home.record.pid: len(shard.groups) for shard in self._living()}

    async def start(self) -> None:
        """Start every shard, side by side."""
        self._shards.extend(await asyncio.gather(*(self._make() for _ in range(self._num_shards))))

    async def run_group(self, work: GroupWork) -> Receipt:
        """Run one group and commit it; `ShardDiedError` when its shard is gone."""
        shard = await self._take_slot(work.group_id)
        try:
            receipt: Receipt = await shard.ask(shard.actor.run_group.remote(work))
            return receipt
        except asyncio.CancelledError:
            shard.actor.cancel_group.remote(work.group_id)  # the caller was cancelled: its group goes with it
            raise
        finally:
            shard.groups.discard(work.group_id)
            self._changed.set()

    async def cancel_group(self, group_id: str) -> None:
        """Stop a running group; one that does not run is left alone."""
        for shard in self._living():
            if group_id in shard.groups:
                await shard.ask_soon(shard.actor.cancel_group.remote(group_id))

    async def set_engines(self, engines: EngineSet) -> None:
        """Tell every shard which engines serve; one that has died learns it from `recover`."""
        self._engines = engines
        await asyncio.gather(*(self._send_engines(shard) for shard in self._living()))

    async def recover(self) -> int:
        """Recreate dead shards, side by side; return how many.

        Raises:
            PlacementError: no shard lives, and the cluster has no room for a new one.
        """
        for shard in self._shards:
            if shard.is_dead:
                ray.kill(shard.actor)  # unreachable is dead as well: its attempts have been given away
        self._shards = self._living()
        num_missing = 0 if self._is_closed else self._num_shards - len(self._shards)
        made = await asyncio.gather(*(self._make() for _ in range(num_missing)), return_exceptions=True)
        new = [shard for shard in made if isinstance(shard, ShardHandle)]
        for shard in new:
            await self._send_engines(shard)
        self._shards.extend(new)
        self._changed.set()
        for error in made:
            if isinstance(error, BaseException):
                self._judge(error)
        return len(new)

    async def close(self) -> None:
        """Stop every shard and its tool workers; may be called again."""
        self._is_closed = True
        self._changed.set()
        shards, self._shards = self._shards, []
        await asyncio.gather(*(self._end(shard) for shard in shards))

    # --- slots
    async def _take_slot(self, group_id: str) -> ShardHandle:
        while not self._is_closed:
            free = [shard for shard in self._living() if len(shard.groups) < self._slots_per_shard]
            if free:
                shard = min(free, key=lambda shard: len(shard.groups))  # the first of equals
                shard.groups.add(group_id)
                return shard
            self._changed.clear()
            await self._changed.wait()
        raise ShardDiedError("the env pool is closed")

    # --- shards
    def _living(self) -> list[ShardHandle]:
        return [shard for shard in self._shards if not shard.is_dead]

    async def _make(self) -> ShardHandle:
        self._num_made += 1
        return await self._start_shard(f"shard-{self._num_made - 1}")

    async def _send_engines(self, shard: ShardHandle) -> None:
        if self._engines is None:
            return
        try:
            await shard.ask_soon(shard.actor.set_engines.remote(self._engines))
        except ShardDiedError as error:
            _log.warning("the engine set did not arrive: %s", error)

    def _judge(self, error: BaseException) -> None:
        """Go on with the shards that live; without any, or after a fault of our own, the run ends."""
        is_passing = isinstance(error, (PlacementError, ShardDiedError)) and bool(self._shards)
        if not is_passing:
            raise error
        _log.warning("a shard could not be recreated, the others go on: %s", error)

    async def _end(self, shard: ShardHandle) -> None:
        if not shard.is_dead:
            try:
                async with asyncio.timeout(_CLOSE_S):
                    await shard.ask(shard.actor.close.remote())
            except (TimeoutError, MedVistaError) as error:
                _log.warning("%s did not close in order: %s", shard.name, error)
        ray.kill(shard.actor)
