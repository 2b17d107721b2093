"""A shard: k slots, groups that are committed or not, and an orderly end. The buffer is the real one."""

from __future__ import annotations

import asyncio

import pytest
from rollout_parts import answer, make_factory, make_runner, make_tasks, make_work, store_sources

from medvista_ray.buffer.local import LocalReplayBuffer
from medvista_ray.buffer.replay_buffer import ReplayBuffer
from medvista_ray.config.schema import BufferConfig
from medvista_ray.errors import EngineDiedError
from medvista_ray.rollout.batching import make_batch_cutter
from medvista_ray.rollout.shard import EnvShard
from medvista_ray.testing.blobs import MemoryBlobStore
from medvista_ray.testing.clock import ManualClock
from medvista_ray.testing.inference import ScriptedPolicyClient
from medvista_ray.types.protocols import EngineSet

TASKS = make_tasks("zoom")


class Gate(ScriptedPolicyClient):
    """Answers by member once the gate is open; also the router of the shard."""

    def __init__(self, renderer, *, is_open=True):
        super().__init__(lambda request: renderer.encode_action(answer("LT"[request.member % 2])).tolist())
        self.gate = asyncio.Event()
        self.waiting: list[str] = []
        self.forgotten: list[str] = []
        self.engine_sets: list[EngineSet] = []
        if is_open:
            self.gate.set()

    async def generate(self, request):
        self.waiting.append(request.group_id)
        await self.gate.wait()
        return await super().generate(request)

    def set_engines(self, engines):
        self.engine_sets.append(engines)

    def forget_group(self, group_id):
        self.forgotten.append(group_id)


class World:
    """One shard, the real buffer behind it, and tasks in flight."""

    def __init__(self, renderer, *, num_slots=2, is_open=True):
        self.gate = Gate(renderer, is_open=is_open)
        self.blobs = MemoryBlobStore()
        config = BufferConfig(groups_per_step=4, max_staleness=4, max_concurrent=16)
        self.buffer = LocalReplayBuffer(
            ReplayBuffer(config, cut_batch=make_batch_cutter(normalize_std=True)), ManualClock()
        )
        self.factory = make_factory()
        self.num_closed = 0
        self.shard = EnvShard(
            num_slots=num_slots,
            runner=make_runner(renderer, self.gate, self.blobs),
            router=self.gate,
            make_env=self.factory.make,
            blobs=self.blobs,
            buffer=self.buffer,
            cache=self.factory.cache,
            close_tools=self._close_tools,
        )

    def _close_tools(self):
        self.num_closed += 1
        self.factory.close()

    async def start(self, number):
        record = TASKS[number]
        await store_sources(self.blobs, record)
        admitted = await self.buffer.admit(f"0/{number}/0", incarnation=0)
        assert admitted.attempt == 0
        return asyncio.create_task(self.shard.run_group(make_work(record, group_id=f"0/{number}/0")))

    async def settle(self):
        for _ in range(30):
            await asyncio.sleep(0)

    async def counts(self):
        return {name: count for name, count in (await self.buffer.status()).counts.items() if count}


@pytest.fixture
async def world(renderer):
    made = World(renderer)
    yield made
    await made.shard.close()


@pytest.fixture
async def held(renderer):
    """A world whose policy waits."""
    made = World(renderer, is_open=False)
    yield made
    await made.shard.close()


async def test_a_finished_group_is_committed_and_its_routes_are_forgotten(world):
    receipt = await (await world.start(0))
    assert receipt.result == "accepted"
    counts = await world.counts()
    assert sum(counts.get(state, 0) for state in ("ready", "filtered")) == 1
    assert world.gate.forgotten == ["0/0/0"]
    page = await world.buffer.read(after=(0, 0), limit=9)
    stored = [group for _, group in page.entries if not isinstance(group, tuple)]
    assert [group.group_id for group in stored] == ["0/0/0"]


async def test_no_more_groups_than_slots_run_at_once(held):
    tasks = [await held.start(number) for number in range(4)]
    await held.settle()
    assert set(held.gate.waiting) == {"0/0/0", "0/1/0"}
    held.gate.gate.set()
    await asyncio.gather(*tasks)
    assert set(held.gate.waiting) == {f"0/{number}/0" for number in range(4)}


async def test_a_cancelled_group_commits_nothing_and_frees_its_slot(held):
    tasks = [await held.start(number) for number in range(3)]
    await held.settle()
    before = await held.counts()
    await held.shard.cancel_group("0/0/0")
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    await held.settle()
    assert await held.counts() == before, "a shard tells the ledger of nothing but commits"
    assert set(held.gate.waiting) == {"0/0/0", "0/1/0", "0/2/0"}, "the third group has its slot"
    assert held.gate.forgotten == ["0/0/0"]
    held.gate.gate.set()
    receipts = await asyncio.gather(*tasks[1:])
    assert [receipt.group_id for receipt in receipts] == ["0/1/0", "0/2/0"]
    page = await held.buffer.read(after=(0, 0), limit=9)
    stored = {group.group_id for _, group in page.entries if not isinstance(group, tuple)}
    assert stored == {"0/1/0", "0/2/0"}


async def test_a_group_that_waits_for_a_slot_can_be_cancelled(held):
    tasks = [await held.start(number) for number in range(3)]
    await held.settle()
    await held.shard.cancel_group("0/2/0")
    with pytest.raises(asyncio.CancelledError):
        await tasks[2]
    assert "0/2/0" not in held.gate.waiting
    await held.shard.cancel_group("0/2/0")  # nothing runs under this id any more
    held.gate.gate.set()
    await asyncio.gather(*tasks[:2])


async def test_a_caller_that_goes_away_takes_its_group_along(held):
    task = await held.start(0)
    await held.settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await held.settle()
    held.gate.gate.set()
    await held.settle()
    assert not held.gate.requests
    assert held.gate.forgotten == ["0/0/0"]


async def test_a_dead_engine_fails_the_group_and_frees_its_slot(world):
    world.gate.is_dead = True
    for number in range(3):
        with pytest.raises(EngineDiedError):
            await (await world.start(number))
    world.gate.is_dead = False
    assert (await (await world.start(3))).result == "accepted"


async def test_an_attempt_that_was_replaced_is_told_so(world):
    task = await world.start(0)
    assert (await world.buffer.attempt("0/0/0", replaces=0, incarnation=0)).attempt == 1
    assert (await task).result == "superseded"
    counts = await world.counts()
    assert counts["running"] == 1


async def test_draining_waits_for_what_runs(held):
    tasks = [await held.start(number) for number in range(2)]
    await held.settle()
    drained = asyncio.create_task(held.shard.drain())
    await held.settle()
    assert not drained.done()
    held.gate.gate.set()
    await drained
    assert all(task.done() for task in tasks) or await asyncio.gather(*tasks)


async def test_closing_cancels_what_runs_and_may_be_repeated(held):
    tasks = [await held.start(number) for number in range(3)]
    await held.settle()
    await held.shard.close()
    for task in tasks:
        with pytest.raises(asyncio.CancelledError):
            await task
    await held.shard.close()
    assert held.num_closed == 2


async def test_engine_sets_go_to_the_router(world):
    engines = EngineSet(epoch=3, engines=())
    world.shard.set_engines(engines)
    assert world.gate.engine_sets == [engines]
