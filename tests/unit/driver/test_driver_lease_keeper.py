import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from medvista_ray.driver.parts import RunEnd
from medvista_ray.errors import NoProgressError

MakeWorld = Callable[..., Any]


async def test_a_step_longer_than_its_lease_and_the_watchdog_is_trained(make_world: MakeWorld) -> None:
    world = make_world(num_tasks=4, step_s=0.8, buffer_config={"ack_wait_s": 0.5}, train_config={"no_progress_s": 0.5})
    outcome = await world.run()
    assert outcome.end is RunEnd.END_OF_DATA
    assert len(world.trained) == world.learner.num_steps * 2 == 4
    assert "learner/lease_expired/steps" not in world.telemetry.counters()


async def test_a_long_update_after_the_ack_is_no_standstill(make_world: MakeWorld) -> None:
    world = make_world(num_tasks=2, buffer_config={"ack_wait_s": 0.5}, train_config={"no_progress_s": 0.5})
    ack = world.buffer.ack

    async def ack_and_update(lease_id: str, *, fence: int) -> None:
        await ack(lease_id, fence=fence)
        await asyncio.sleep(1.0)

    world.buffer.ack = ack_and_update
    assert (await world.run()).end is RunEnd.END_OF_DATA


async def test_a_step_that_hangs_ends_the_run(make_world: MakeWorld) -> None:
    world = make_world(step_s=60.0, buffer_config={"ack_wait_s": 0.1}, train_config={"no_progress_s": 0.3})
    async with asyncio.timeout(5):
        with pytest.raises(NoProgressError, match=r"lease waits for step_too_long; .*train waits for train_step"):
            await world.run()
    assert (await world.buffer.status()).counts["ready"] == 4  # it has gone back
