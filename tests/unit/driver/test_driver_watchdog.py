import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from medvista_ray.errors import NoProgressError

MakeWorld = Callable[..., Any]


async def forever(*arguments: object, **keywords: object) -> int:
    await asyncio.Event().wait()
    return 0


async def test_the_watchdog_names_every_loop_and_its_reason(make_world: MakeWorld) -> None:
    world = make_world(delay_s=60.0, train_config={"no_progress_s": 0.2})
    with pytest.raises(NoProgressError) as caught:
        await world.run()
    text = str(caught.value)
    assert "train.no_progress_s" in text
    for words in ("dispatch waits for no_capacity", "train waits for group_incomplete", "record waits for no_record"):
        assert words in text
    assert "running 4" in text
    assert "0/0/0 (attempt 0" in text
    assert sorted(world.env_pool.cancelled) == ["0/0/0", "0/1/0", "0/2/0", "0/3/0"]


@pytest.mark.parametrize("frozen", ["set_engines", "recover_engines", "recover_shards", "expire"])
async def test_what_the_watch_loop_waits_for_cannot_hold_the_watchdog(make_world: MakeWorld, frozen: str) -> None:
    world = make_world(delay_s=0.005, step_s=0.01, train_config={"no_progress_s": 0.4}, num_tasks=2000)
    run = asyncio.create_task(world.run())
    await asyncio.sleep(0.1)
    if frozen == "set_engines":
        world.env_pool.set_engines = forever
    elif frozen == "recover_engines":
        world.engines.recover = forever
    elif frozen == "recover_shards":
        world.env_pool.recover = forever
    else:
        world.buffer.expire = forever
    world.engines.kill()
    world.env_pool.run_group = forever
    async with asyncio.timeout(10):
        with pytest.raises(NoProgressError, match=r"train.no_progress_s.*Ledger: "):
            await run


async def test_a_ledger_that_does_not_answer_is_no_progress(make_world: MakeWorld) -> None:
    world = make_world(delay_s=0.005, train_config={"no_progress_s": 0.2}, num_tasks=2000)
    run = asyncio.create_task(world.run())
    await asyncio.sleep(0.02)
    world.buffer.status = world.buffer.admit = forever
    async with asyncio.timeout(10):
        with pytest.raises(NoProgressError, match=r"train.no_progress_s"):
            await run
