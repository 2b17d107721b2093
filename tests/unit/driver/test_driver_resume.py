import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from medvista_ray.driver import driver as driver_module
from medvista_ray.driver.checkpoint import list_checkpoints, load_record
from medvista_ray.driver.parts import RunEnd
from medvista_ray.errors import ConfigError, LearnerDiedError, RunFailedError
from medvista_ray.testing.rollout import different_rewards, equal_rewards
from medvista_ray.types.delivery import GroupWork
from medvista_ray.types.trajectories import parse_group_id

MakeWorld = Callable[..., Any]


def task_indices(group_ids: list[str]) -> list[int]:
    return [parse_group_id(group_id)[1] for group_id in group_ids]


def mixed_rewards(work: GroupWork) -> Any:
    return equal_rewards(work) if parse_group_id(work.group_id)[1] % 4 == 1 else different_rewards(work)


async def stop_after(world: Any, version: int) -> Any:
    """Run and ask for a stop as soon as groups run and a version is published."""
    run = asyncio.create_task(world.run())
    while not world.env_pool.started or world.engines.policy_version < version:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    world.driver.request_stop()
    return await run


@pytest.mark.parametrize("version", [0, 1, 3, 5])
async def test_stop_and_resume_settle_every_task_once(make_world: MakeWorld, version: int) -> None:
    changes = {"num_tasks": 20, "rewards": mixed_rewards, "delay_s": 0.004, "step_s": 0.002}
    first = make_world(**changes)
    outcome = await stop_after(first, version)
    assert outcome.end is RunEnd.STOPPED
    assert outcome.checkpoint is not None
    assert len(set(first.trained)) == len(first.trained) < 15

    second = make_world(**changes)
    await second.driver.resume(first.folder)
    outcome = await second.run()
    assert outcome.end is RunEnd.END_OF_DATA
    status = await second.check_ledger()
    assert (status.counts["consumed"], status.counts["filtered"], status.counts["failed"]) == (15, 5, 0)
    assert sorted(task_indices(second.trained)) == [index for index in range(20) if index % 4 != 1]
    assert second.trained[: len(first.trained)] == first.trained
    assert outcome.summary["groups"]["consumed"] == 15


async def test_a_resumed_lock_step_run_equals_an_undisturbed_one(make_world: MakeWorld) -> None:
    changes = {
        "num_tasks": 24,
        "rewards": mixed_rewards,
        "buffer_config": {"max_staleness": 0, "groups_per_step": 3},
    }
    root = make_world().folder
    whole = make_world(folder=root / "whole", **changes)
    await whole.run()
    seen: list[str] = []

    def stop_in_a_wave(work: GroupWork) -> float:  # its first group commits, the others still run
        if first.engines.policy_version != 2:
            return 0.0
        seen.append(work.group_id)
        return 0.001 if len(seen) == 1 else 60.0

    def ask_at_commit(work: GroupWork) -> Any:
        if work.group_id in seen:
            asyncio.get_running_loop().call_later(0.02, first.driver.request_stop)
        return mixed_rewards(work)

    first = make_world(folder=root / "cut", **{**changes, "delay_s": stop_in_a_wave, "rewards": ask_at_commit})
    await first.run()
    assert len(seen) == 3
    second = make_world(folder=root / "cut", **changes)
    await second.driver.resume(root / "cut")
    await second.run()
    assert second.learner.history == whole.learner.history
    one, other = await whole.check_ledger(), await second.check_ledger()
    assert one.counts == other.counts
    waves = [group_id for group_id, _ in whole.env_pool.started]
    resumed = [group_id for group_id, _ in second.env_pool.started]
    assert waves[-len(resumed) :] == resumed
    assert {attempt for _, attempt in second.env_pool.started} == {0}  # whole waves, the same groups side by side


async def test_a_stop_ends_everything_that_runs_within_seconds(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "_STOP_GRACE_S", 0.1)
    world = make_world(delay_s=lambda work: 60.0 if parse_group_id(work.group_id)[1] >= 4 else 0.0)
    run = asyncio.create_task(world.run())
    while len(world.env_pool.started) < 8:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    asked = time.monotonic()
    world.driver.request_stop()
    outcome = await run
    assert time.monotonic() - asked < 5
    assert set(world.env_pool.cancelled) == {"0/4/0", "0/5/0", "0/6/0", "0/7/0"}
    assert [world.engines.is_closed, world.env_pool.is_closed, world.learner.is_closed] == [False] * 3
    assert load_record(outcome.checkpoint).policy_version == 2
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert not names & {"dispatch", "train", "watch", "record"}


@pytest.mark.parametrize("staleness", [0, 1])
async def test_a_train_step_that_does_not_end_is_abandoned_and_its_border_saved(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, staleness: int
) -> None:
    monkeypatch.setattr(driver_module, "_STOP_GRACE_S", 0.05)
    changes = {"buffer_config": {"max_staleness": staleness}}
    world = make_world(delay_s=0.002, train_config={"checkpoint_every": 50}, **changes)
    shard = world.buffer.shard

    async def fourth_does_not_end(lease_id: str, *, rank: int) -> Any:
        if len(world.learner.history) == 3:
            world.driver.request_stop()
            await asyncio.sleep(60)
        return await shard(lease_id, rank=rank)

    world.buffer.shard = fourth_does_not_end
    outcome = await world.run()
    assert len(world.learner.history) == 3
    assert outcome.end is RunEnd.STOPPED
    assert outcome.checkpoint == list_checkpoints(world.folder / "checkpoints")[-1]
    assert load_record(outcome.checkpoint).policy_version == 3  # its gradients were dropped: the border before it

    again = make_world(**changes)
    await again.driver.resume(outcome.checkpoint)
    await again.run()
    assert sorted(task_indices(again.trained)) == list(range(12))
    assert again.trained[:6] == world.trained


@pytest.mark.parametrize("staleness", [0, 1])
async def test_an_abandoned_step_that_has_claimed_its_batch_is_no_border(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, staleness: int
) -> None:
    monkeypatch.setattr(driver_module, "_STOP_GRACE_S", 0.05)
    world = make_world(delay_s=0.002, train_config={"checkpoint_every": 2}, buffer_config={"max_staleness": staleness})
    ack = world.buffer.ack

    async def ack_and_update(lease_id: str, *, fence: int) -> None:
        await ack(lease_id, fence=fence)
        if len(world.learner.history) == 3:
            world.driver.request_stop()
            await asyncio.sleep(60)

    world.buffer.ack = ack_and_update
    outcome = await world.run()
    assert load_record(outcome.checkpoint).policy_version == 2
    again = make_world()
    await again.driver.resume(outcome.checkpoint)
    await again.run()
    assert sorted(task_indices(again.trained)) == list(range(12))


async def test_a_border_that_the_learner_cannot_write_in_time_is_left_out(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "_STOP_GRACE_S", 0.05)
    monkeypatch.setattr(driver_module, "_STOP_SAVE_S", 0.05)
    world = make_world(train_config={"checkpoint_every": 50}, step_s=60.0)
    save_checkpoint = world.learner.save_checkpoint

    async def save(path: str) -> None:  # behind the step in the learner's thread
        if world.learner.num_saves == 1:
            await asyncio.sleep(60)
        await save_checkpoint(path)

    world.learner.save_checkpoint = save
    asyncio.get_running_loop().call_later(0.2, world.driver.request_stop)
    async with asyncio.timeout(5):
        outcome = await world.run()
    assert outcome.checkpoint.name == "step-000000"
    assert load_record(outcome.checkpoint).policy_version == 0


async def test_a_stop_before_the_start_is_done_writes_nothing(make_world: MakeWorld) -> None:
    world = make_world()

    async def slow_swap(version: int) -> None:
        await asyncio.sleep(60)

    world.engines.swap = slow_swap
    world.driver.request_stop()
    outcome = await world.run()
    assert (outcome.end, outcome.checkpoint, outcome.policy_version) == (RunEnd.STOPPED, None, 0)


async def test_a_learner_that_dies_goes_on_from_the_newest_checkpoint(make_world: MakeWorld) -> None:
    world = make_world(num_tasks=16, delay_s=0.002)
    world.learner.die_at = {4, 8}
    outcome = await world.run()
    assert outcome.end is RunEnd.END_OF_DATA
    assert sorted(task_indices(world.trained)) == list(range(16))
    status = await world.check_ledger()
    assert (status.counts["consumed"], status.incarnation) == (16, 2)
    assert world.engines.versions.count(2) == 2  # loaded again before anything was admitted
    assert world.telemetry.counters()["driver/resumes/count"] == 2
    assert world.learner.written[-1] == 8


async def test_a_learner_that_dies_before_the_first_periodic_checkpoint_starts_over(make_world: MakeWorld) -> None:
    world = make_world(train_config={"checkpoint_every": 50})
    world.learner.die_at = {2}
    await world.run()
    assert sorted(task_indices(world.trained)) == list(range(12))
    assert world.engines.versions[:4] == [0, 1, 0, 1]


async def test_a_learner_that_keeps_dying_fails_the_run_with_its_batches(make_world: MakeWorld) -> None:
    world = make_world(train_config={"max_resumes": 2, "checkpoint_every": 3})
    world.learner.die_at = set(range(5, 20))
    text = r"after 2 resumes from step-000003 .*train.max_resumes.* at the batch of version 3; .*: nothing"
    with pytest.raises(RunFailedError, match=text):
        await world.run()
    assert world.learner.num_steps == 5 + 2 * 1


async def test_a_crash_in_a_checkpoint_leaves_the_one_before(make_world: MakeWorld) -> None:
    world = make_world(num_tasks=16)
    world.learner.die_in_save = {3}  # the start, version 2, version 4
    await world.run()  # the driver resumes by itself
    assert world.engines.versions == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 8]
    assert sorted(task_indices(world.trained)) == list(range(16))
    assert not list((world.folder / "checkpoints").glob(".tmp-*"))


async def test_a_new_process_resumes_what_a_crash_left(make_world: MakeWorld) -> None:
    first = make_world(num_tasks=16, train_config={"max_resumes": 1})
    first.learner.die_at = set(range(4, 99))
    with pytest.raises(RunFailedError) as caught:
        await first.run()
    assert isinstance(caught.value.__cause__, LearnerDiedError)
    second = make_world(num_tasks=16)
    await second.driver.resume(first.folder)
    await second.run()
    assert sorted(task_indices(second.trained)) == list(range(16))
    assert second.engines.versions[0] == 2


async def test_recording_goes_on_where_it_stopped(make_world: MakeWorld) -> None:
    changes = {"num_tasks": 20, "delay_s": 0.004, "train_config": {"record_every": 1, "max_recorded": 1000}}
    first = make_world(**changes)
    await stop_after(first, 3)
    second = make_world(**changes)
    await second.driver.resume(first.folder)
    await second.run()
    recorded = {group.group_id for group in [*first.recorded, *second.recorded]}
    assert sorted(task_indices(list(recorded))) == list(range(20))


@pytest.mark.parametrize("staleness", [0, 1])
async def test_a_slow_recorder_skips_nothing_across_a_resume(make_world: MakeWorld, staleness: int) -> None:
    changes = {
        "num_tasks": 20,
        "delay_s": 0.001,
        "buffer_config": {"max_staleness": staleness},
        "train_config": {"record_every": 1, "max_recorded": 1000},
    }
    first = make_world(**changes)

    async def slow_sink(group: Any) -> None:
        await asyncio.sleep(0.02)
        first.recorded.append(group)

    first._sink = slow_sink
    first.driver = first.make_driver()
    await stop_after(first, 3)
    second = make_world(**changes)
    await second.driver.resume(first.folder)
    await second.run()
    recorded = {group.group_id for group in [*first.recorded, *second.recorded]}
    assert sorted(task_indices(list(recorded))) == list(range(20))


@pytest.mark.parametrize(("changes", "words"), [({"num_tasks": 13}, "num_tasks is 13"), ({"world_size": 2}, None)])
async def test_a_resume_with_other_tasks_is_refused(make_world: MakeWorld, changes: Any, words: str | None) -> None:
    first = make_world()
    await first.run()
    second = make_world(**changes)
    if words is None:
        await second.driver.resume(first.folder)
        assert (await second.run()).end is RunEnd.END_OF_DATA  # nothing is left to do
        assert second.trained == first.trained
        return
    with pytest.raises(ConfigError, match=words):
        await second.driver.resume(first.folder)


async def test_a_resume_without_a_checkpoint_says_so(make_world: MakeWorld) -> None:
    world = make_world()
    with pytest.raises(ConfigError, match="nothing to resume from"):
        await world.driver.resume(world.folder)
