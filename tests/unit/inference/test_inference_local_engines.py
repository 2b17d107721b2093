"""The set of engines: which weights a new one starts from, deadlines, replacements that find no room."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from medvista_ray.errors import EngineDiedError, PlacementError, WeightsRefusedError
from medvista_ray.inference.local_engines import LocalEngines
from medvista_ray.types.sampling import GenerateRequest, GenerateResult, WeightUpdate


class FileEngine:
    """Takes weights as a real one does, from a file that must be there; hangs, dies or finds no room as told."""

    def __init__(self, engine_id: str, files: set[str]) -> None:
        self.engine_id = engine_id
        self.is_dead = False
        self.has_room = True
        self.hangs_in = ""
        self.calls: list[tuple[str, int]] = []
        self._files = files
        self._staged: int | None = None

    async def wait_started(self) -> None:
        if not self.has_room:
            raise PlacementError(f"{self.engine_id} has not started")

    async def stage(self, update: WeightUpdate) -> None:
        await self._begin("stage", update.policy_version)
        if update.path not in self._files:
            raise WeightsRefusedError(f"{update.path} is not there")
        self._staged = update.policy_version

    async def swap(self, policy_version: int) -> str:
        await self._begin("swap", policy_version)
        assert self._staged == policy_version
        return f"checksum {policy_version}"

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        raise AssertionError("nobody samples here")

    async def close(self) -> None:
        self.is_dead = True

    async def _begin(self, call: str, policy_version: int) -> None:
        self.calls.append((call, policy_version))
        if self.is_dead:
            raise EngineDiedError(f"{self.engine_id} is gone")
        if self.hangs_in == call:
            await asyncio.Event().wait()


class World:
    """A set of two engines, and the files that the learner writes: the newest two versions are kept."""

    def __init__(self, *, answer_s: float = 20.0) -> None:
        self.files: set[str] = set()
        self.made: list[FileEngine] = []
        self.before_use: Callable[[FileEngine], None] = lambda engine: None
        self.engines = LocalEngines(self._make, num_engines=2, answer_s=answer_s)

    def _make(self, engine_id: str) -> FileEngine:
        engine = FileEngine(engine_id, self.files)
        self.before_use(engine)
        self.made.append(engine)
        return engine

    def write(self, version: int) -> WeightUpdate:
        self.files &= {f"v{version - 1}"}
        self.files.add(f"v{version}")
        return WeightUpdate(policy_version=version, path=f"v{version}", digest="0" * 64)

    async def publish(self, version: int) -> None:
        await self.engines.stage(self.write(version))
        await self.engines.swap(version)

    def kill_all(self) -> None:
        for engine in self.made:
            engine.is_dead = True

    @property
    def serving(self) -> list[str]:
        return [engine.engine_id for engine in self.engines.engine_set().engines]


async def test_after_a_resume_new_engines_start_from_what_the_learner_has_gone_back_to() -> None:
    world = World()
    await world.publish(59)
    await world.publish(60)
    world.kill_all()  # and the learner with them
    await world.publish(50)
    assert world.serving == ["engine-2", "engine-3"]
    assert world.made[2].calls == world.made[3].calls == [("stage", 50), ("swap", 50)]
    assert await world.engines.recover() == 2
    world.made[2].is_dead = True
    assert await world.engines.recover() == 1
    assert world.made[4].calls == [("stage", 50), ("swap", 50)]


async def test_engines_that_die_while_a_lost_version_is_staged_never_hear_of_it_again() -> None:
    world = World()
    await world.publish(50)
    await world.engines.stage(world.write(51))
    update = world.write(50)  # a resume: version 51 goes
    world.files.clear()
    with pytest.raises(WeightsRefusedError, match="version 50: every engine refused"):
        await world.engines.stage(update)
    world.kill_all()
    assert await world.engines.recover() == 2
    await world.publish(50)
    assert world.made[3].calls == [("stage", 50), ("swap", 50)]


async def test_a_first_publish_to_engines_that_died_at_their_start_reaches_new_ones() -> None:
    world = World()
    world.kill_all()
    await world.publish(0)
    assert world.serving == ["engine-2", "engine-3"]
    assert await world.engines.recover() == 2  # counted, though nobody had asked


@pytest.mark.parametrize("call", ["stage", "swap"])
async def test_an_engine_that_does_not_answer_is_quarantined_and_the_others_go_on(call: str) -> None:
    world = World(answer_s=0.05)
    await world.publish(0)
    world.made[0].hangs_in = call
    async with asyncio.timeout(5):
        await world.publish(1)
    assert world.serving == ["engine-1"]
    assert world.engines.checksums["engine-1"] == "checksum 1"
    assert await world.engines.recover() == 1
    assert world.made[2].calls == [("stage", 1), ("swap", 1)]


async def test_when_no_engine_answers_the_publish_fails_with_a_typed_error() -> None:
    world = World(answer_s=0.05)
    for engine in world.made:
        engine.hangs_in = "stage"
    async with asyncio.timeout(5):
        with pytest.raises(EngineDiedError, match=r"engine-0 has not staged version 0 within 0\.05 s"):
            await world.engines.stage(world.write(0))
        assert world.serving == []
        await world.publish(0)
    assert world.serving == ["engine-2", "engine-3"]


async def test_a_new_engine_that_does_not_answer_is_tried_again() -> None:
    world = World(answer_s=0.05)
    await world.publish(0)
    world.made[0].is_dead = True
    world.before_use = lambda engine: setattr(engine, "hangs_in", "swap")
    async with asyncio.timeout(5):
        assert await world.engines.recover() == 0
    world.before_use = lambda engine: None
    assert await world.engines.recover() == 1
    assert world.serving == ["engine-1", "engine-3"]


def has_no_room(engine: FileEngine) -> None:
    engine.has_room = False


async def test_a_replacement_without_room_is_passing_while_another_engine_serves() -> None:
    world = World()
    await world.publish(0)
    world.made[0].is_dead = True
    world.before_use = has_no_room
    assert await world.engines.recover() == 0
    assert world.serving == ["engine-1"]
    assert await world.engines.recover() == 0
    assert len(world.made) == 3  # not tried again at once: a try may take as long as a start may
    await world.publish(1)
    world.engines._no_room_until_s = 0.0
    world.before_use = lambda engine: None
    assert await world.engines.recover() == 1
    assert world.made[3].calls == [("stage", 1), ("swap", 1)]


async def test_without_any_engine_no_room_ends_the_run() -> None:
    world = World()
    await world.publish(0)
    world.kill_all()
    world.before_use = has_no_room
    with pytest.raises(PlacementError, match="engine-2"):
        await world.engines.recover()
    with pytest.raises(PlacementError, match="engine-3"):
        await world.engines.stage(world.write(1))


async def test_room_for_one_of_two_new_engines_is_enough_for_a_publish() -> None:
    world = World()
    await world.publish(0)
    world.kill_all()
    world.before_use = lambda engine: setattr(engine, "has_room", engine.engine_id == "engine-3")
    await world.publish(1)
    assert world.serving == ["engine-3"]
    assert world.made[2].is_dead
    assert await world.engines.recover() == 1  # it was the publish that made it
