import asyncio

import pytest

from medvista_ray.driver.owner import TaskOwner
from medvista_ray.driver.state import RunState, Signal


async def forever() -> None:
    await asyncio.Event().wait()


async def fail(error: Exception) -> None:
    await asyncio.sleep(0)
    raise error


async def test_the_first_failure_is_raised_with_its_own_type() -> None:
    owner = TaskOwner()
    main = owner.start(forever(), name="main")
    owner.start(fail(KeyError("first")), name="a")
    with pytest.raises(KeyError, match="first"):
        await owner.wait(main)
    await owner.cancel_all()
    assert main.cancelled()


async def test_a_failure_of_the_awaited_task_itself_is_raised() -> None:
    owner = TaskOwner()
    with pytest.raises(ZeroDivisionError):
        await owner.wait(owner.start(fail(ZeroDivisionError()), name="main"))


async def test_an_event_ends_the_wait_and_leaves_the_task() -> None:
    owner, stop = TaskOwner(), asyncio.Event()
    main = owner.start(forever(), name="main")
    stop.set()
    await owner.wait(main, or_event=stop)
    assert not main.done()
    await owner.cancel_all()
    await owner.cancel_all()
    assert main.cancelled()


async def test_a_change_between_mark_and_wait_is_not_missed() -> None:
    signal = Signal()
    mark = signal.mark()
    signal.notify()
    assert await signal.wait(mark, timeout_s=30)
    assert not await signal.wait(signal.mark(), timeout_s=0.01)
    waiter = asyncio.create_task(signal.wait(signal.mark(), timeout_s=30))
    await asyncio.sleep(0)
    signal.notify()
    assert await waiter


async def test_admission_is_held_by_one_loop_at_a_time() -> None:
    state, order = RunState(), []

    async def dispatch() -> None:
        async with state.hold_admission("dispatch"):
            order.append("admitted")

    async with state.hold_admission("publish"):
        task = asyncio.create_task(dispatch())
        await asyncio.sleep(0)
        order.append("swapped")
        assert state.waits["dispatch"] == "swap"
    await task
    assert order == ["swapped", "admitted"]
