"""The env pool over scripted shards: no process, only who is asked, who is killed and who comes back."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")

from medvista_ray.cluster import env_pool as env_pool_module
from medvista_ray.cluster.env_pool import RemoteEnvPool, ShardHandle
from medvista_ray.errors import ShardDiedError
from medvista_ray.types.protocols import EngineSet

ENGINES = EngineSet(epoch=1, engines=("engine-0",))


class Method:
    """A remote method that notes its arguments and answers, or never does."""

    def __init__(self, *, is_frozen: bool = False) -> None:
        self.is_frozen = is_frozen
        self.calls: list[Any] = []

    async def _answer(self) -> None:
        if self.is_frozen:
            await asyncio.Event().wait()

    def remote(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        return self._answer()


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    actors: list[Any] = []
    monkeypatch.setattr(env_pool_module.ray, "kill", actors.append)
    monkeypatch.setattr(env_pool_module, "_ANSWER_S", 0.05)
    return actors


async def make_pool() -> tuple[RemoteEnvPool, list[ShardHandle]]:
    shards: list[ShardHandle] = []

    async def start_shard(name: str) -> ShardHandle:
        actor = SimpleNamespace(set_engines=Method(), cancel_group=Method())
        home: Any = SimpleNamespace(record=SimpleNamespace(pid=len(shards)))
        shards.append(ShardHandle(name=name, actor=actor, home=home, life=Future()))
        return shards[-1]

    pool = RemoteEnvPool(start_shard, num_shards=2, slots_per_shard=4)
    await pool.start()
    return pool, shards


async def test_a_frozen_shard_does_not_hold_the_engine_set_and_is_replaced(killed: list[Any]) -> None:
    pool, shards = await make_pool()
    shards[0].actor.set_engines.is_frozen = True
    async with asyncio.timeout(5):
        await pool.set_engines(ENGINES)
    assert killed == [shards[0].actor]
    assert shards[1].actor.set_engines.calls == [(ENGINES,)]
    assert set(pool.loads) == {1}
    assert await pool.recover() == 1
    assert set(pool.loads) == {1, 2}
    assert shards[2].actor.set_engines.calls == [(ENGINES,)]


async def test_a_shard_that_does_not_cancel_a_group_is_given_up(killed: list[Any]) -> None:
    pool, shards = await make_pool()
    shards[1].actor.cancel_group.is_frozen = True
    shards[1].groups.add("0/0/0")
    async with asyncio.timeout(5):
        with pytest.raises(ShardDiedError, match="shard-1 has not answered"):
            await pool.cancel_group("0/0/0")
    assert killed == [shards[1].actor]
    assert shards[1].is_dead
