import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from medvista_ray.driver import publisher
from medvista_ray.driver.parts import RunEnd
from medvista_ray.errors import (
    BlobMissingError,
    ConfigError,
    DataError,
    RunFailedError,
    WeightsRefusedError,
)
from medvista_ray.testing.records import ListTaskSource, make_task_record
from medvista_ray.testing.rollout import Death, different_rewards, equal_rewards
from medvista_ray.types.delivery import CommitResult, GroupWork
from medvista_ray.types.trajectories import parse_group_id

MakeWorld = Callable[..., Any]


def task_indices(group_ids: list[str]) -> list[int]:
    return [parse_group_id(group_id)[1] for group_id in group_ids]


async def test_a_run_trains_every_task_once_and_ends(make_world: MakeWorld) -> None:
    world = make_world()
    outcome = await world.run()
    assert outcome.end is RunEnd.END_OF_DATA
    assert sorted(task_indices(world.trained)) == list(range(12))
    status = await world.check_ledger()
    assert status.counts["consumed"] == 12
    assert outcome.policy_version == world.engines.policy_version == 6
    assert world.engines.versions == list(range(7))  # version 0 before the first rollout
    assert world.env_pool.max_running <= 4
    assert len(world.blobs.data) == 12
    assert world.progress[-1].num_settled == 12


async def test_the_summary_has_what_summary_json_asks_for(make_world: MakeWorld) -> None:
    world = make_world(delay_s=0.001)
    world.learner.max_abs_logprob_diffs = {2: 5e-4, 3: 1e-5}
    summary = (await world.run()).summary
    assert summary["groups"] == {
        "submitted": 12, "consumed": 12, "filtered": 0, "failed": 0, "stale": 0, "cancelled": 0,
    }  # fmt: skip
    assert summary["staleness"]["max"] == 1
    assert 0 < summary["staleness"]["mean"] <= 1
    assert summary["rollout_tokens_per_s"] > 0
    assert summary["max_abs_logprob_diff"] == 5e-4


async def test_metrics_of_every_step_are_written(make_world: MakeWorld) -> None:
    world = make_world(world_size=2)
    await world.run()
    assert sorted(world.metrics) == [1, 2, 3, 4, 5, 6]
    assert world.metrics[1]["rollout/reward/mean"] == 0.5
    assert world.metrics[1]["learner/reward/mean"] == 0.5
    assert world.metrics[6]["buffer/consumed/groups"] == 12
    assert world.metrics[6]["tools/segment_calls/count"] == 1.0
    assert all(len(key.split("/")) == 3 for key in world.metrics[6])


async def test_several_epochs_and_an_odd_rest(make_world: MakeWorld) -> None:
    world = make_world(num_tasks=5, train_config={"num_epochs": 3})
    await world.run()
    assert Counter(task_indices(world.trained)) == dict.fromkeys(range(5), 3)
    assert len(world.learner.history[-1]) == 1
    assert {parse_group_id(group_id)[0] for group_id in world.trained} == {0, 1, 2}


async def test_filtered_and_failed_groups_give_their_slot_back(make_world: MakeWorld) -> None:
    def rewards(work: GroupWork) -> list[float | None]:
        index = parse_group_id(work.group_id)[1]
        return {0: [1.0, 1.0], 1: [1.0, None]}.get(index % 3, [0.0, 1.0])

    world = make_world(num_tasks=12, rewards=rewards)
    await world.run()
    status = await world.check_ledger()
    assert (status.counts["filtered"], status.counts["failed"], status.counts["consumed"]) == (4, 4, 4)
    assert sorted(task_indices(world.trained)) == [2, 5, 8, 11]


async def test_stale_groups_are_issued_again(make_world: MakeWorld) -> None:
    def delay_s(work: GroupWork) -> float:  # task 0 is so slow that versions go by
        return 0.15 if work.group_id == "0/0/0" else 0.001

    world = make_world(num_tasks=16, delay_s=delay_s)
    outcome = await world.run()
    status = await world.check_ledger()
    assert status.counts["stale"] >= 1
    assert "0/0/1" in world.trained
    assert sorted(task_indices(world.trained)) == list(range(16))
    assert outcome.summary["staleness"]["max"] <= 1


@pytest.mark.parametrize("death", list(Death))
async def test_a_dead_shard_loses_and_doubles_nothing(make_world: MakeWorld, death: Death) -> None:
    world = make_world(delay_s=0.002)
    world.env_pool.deaths = {"0/1/0": [death], "0/6/0": [death], "0/7/0": [death]}
    await world.run()
    status = await world.check_ledger()
    assert status.counts["submitted"] == status.counts["consumed"] == 12
    assert sorted(task_indices(world.trained)) == list(range(12))
    assert world.env_pool.num_recovered >= 2
    executions = Counter(group_id for group_id, _ in world.env_pool.started)
    assert executions["0/1/0"] == (2 if death is Death.BEFORE_COMMIT else 1)
    assert world.env_pool.results[CommitResult.SUPERSEDED] == 0


async def test_a_group_whose_shards_keep_dying_fails_alone(make_world: MakeWorld) -> None:
    world = make_world(buffer_config={"max_attempts": 2})
    world.env_pool.deaths = {"0/3/0": [Death.BEFORE_COMMIT] * 9}
    await world.run()
    status = await world.check_ledger()
    assert (status.counts["failed"], status.counts["consumed"]) == (1, 11)
    assert [attempt for group_id, attempt in world.env_pool.started if group_id == "0/3/0"] == [0, 1, 2]


async def test_a_group_past_its_deadline_is_cancelled_and_issued_again(make_world: MakeWorld) -> None:
    world = make_world(delay_s=lambda work: 30.0 if work.group_id == "0/2/0" else 0.0, group_timeout_s=0.05)
    await world.run()
    status = await world.check_ledger()
    assert (status.counts["cancelled"], status.counts["consumed"]) == (1, 12)
    assert world.env_pool.cancelled == ["0/2/0"]
    assert "0/2/1" in world.trained


async def test_bad_data_of_one_task_is_counted_and_the_run_goes_on(make_world: MakeWorld) -> None:
    world = make_world()
    records = [make_task_record(index) for index in range(12)]
    world.tasks = ListTaskSource([*records[:4], DataError("tasks/4.png is no image"), *records[5:]])
    world.driver = world.make_driver()
    await world.run()
    status = await world.check_ledger()
    assert (status.counts["failed"], status.counts["consumed"]) == (1, 11)


async def test_a_dead_engine_is_recreated_and_the_shards_are_told(make_world: MakeWorld) -> None:
    world = make_world(num_tasks=8, delay_s=0.01)
    world.env_pool.deaths = {"0/2/0": [Death.BEFORE_COMMIT]}
    run = asyncio.create_task(world.run())
    await asyncio.sleep(0.005)
    world.engines.kill()
    await run
    assert world.engines.num_dead == 0
    assert world.env_pool.engine_sets[-1] == world.engines.engine_set()


async def test_shards_are_told_again_of_engines_that_have_not_changed(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "_REPEAT_S", 0.0)
    world = make_world(delay_s=0.05, train_config={"no_progress_s": 0.4})  # a look every 0.1 s
    await world.run()
    assert len(world.env_pool.engine_sets) > 1  # a shard may have lost an engine that lives
    assert {engine_set.epoch for engine_set in world.env_pool.engine_sets} == {world.engines.engine_set().epoch}


async def test_weights_that_are_refused_once_are_written_again(make_world: MakeWorld) -> None:
    world = make_world()
    world.engines.refused_versions = [3]
    await world.run()
    assert world.engines.versions == list(range(7))
    assert max(Counter(world.learner.written).values()) == 2


async def test_weights_that_are_refused_twice_fail_the_run(make_world: MakeWorld) -> None:
    world = make_world()
    world.engines.refused_versions = [0, 0]
    with pytest.raises(WeightsRefusedError, match="scripted refusal"):
        await world.run()


async def test_engines_that_all_die_in_a_swap_are_recreated(make_world: MakeWorld) -> None:
    world = make_world()
    world.engines.fatal_versions = [2, 5]
    await world.run()
    assert world.engines.versions == list(range(7))
    assert sorted(task_indices(world.trained)) == list(range(12))
    assert world.telemetry.counters()["engine/recovered/engines"] == 4
    assert world.env_pool.engine_sets[-1] == world.engines.engine_set()


async def test_engines_that_die_again_while_they_are_recreated_come_back_at_the_next_look(
    make_world: MakeWorld,
) -> None:
    world = make_world(delay_s=0.01, train_config={"no_progress_s": 0.4})
    world.engines.fatal_versions = [2, 2]
    await world.run()
    assert world.engines.versions == list(range(7))
    assert [engine.engine_id for engine in world.engines.engine_set().engines] == ["engine-2", "engine-3"]
    assert sorted(task_indices(world.trained)) == list(range(12))


async def test_an_expired_lease_costs_a_train_step_and_nothing_else(make_world: MakeWorld) -> None:
    world = make_world()
    world.learner.expire_at = {2, 4}
    await world.run()
    await world.check_ledger()
    assert sorted(task_indices(world.trained)) == list(range(12))
    assert world.telemetry.counters()["learner/lease_expired/steps"] == 2


async def test_a_converged_policy_ends_the_run_in_order(make_world: MakeWorld) -> None:
    def rewards(work: GroupWork) -> Any:
        return different_rewards(work) if parse_group_id(work.group_id)[1] < 5 else equal_rewards(work)

    world = make_world(num_tasks=100, rewards=rewards, buffer_config={"converged_groups": 3}, delay_s=0.001)
    outcome = await world.run()
    assert outcome.end is RunEnd.CONVERGED
    status = await world.check_ledger()
    assert sorted(task_indices(world.trained)) == [0, 1, 2, 3, 4]
    assert status.counts["running"] == status.counts["ready"] == 0
    assert status.counts["submitted"] < 20


async def test_admission_waits_while_weights_are_swapped(make_world: MakeWorld) -> None:
    world = make_world(num_tasks=8)
    seen: list[tuple[int, int]] = []
    swap = world.engines.swap

    async def slow_swap(version: int) -> None:
        before = (await world.buffer.status()).counts["submitted"]
        await asyncio.sleep(0.02)
        seen.append((before, (await world.buffer.status()).counts["submitted"]))
        await swap(version)

    world.engines.swap = slow_swap
    await world.run()
    assert len(seen) == 5
    assert all(before == after for before, after in seen)


async def test_every_nth_group_is_recorded_up_to_the_limit(make_world: MakeWorld) -> None:
    world = make_world(train_config={"record_every": 3})
    await world.run()
    assert len(world.recorded) == 4
    world = make_world(folder=world.folder / "other", train_config={"record_every": 1, "max_recorded": 6})
    await world.run()
    assert len(world.recorded) == 3  # groups of two trajectories


async def test_staleness_zero_is_the_same_run_every_time(make_world: MakeWorld) -> None:
    def rewards(work: GroupWork) -> Any:
        return equal_rewards(work) if parse_group_id(work.group_id)[1] % 4 == 1 else different_rewards(work)

    def jitter(work: GroupWork) -> float:
        return (hash((work.group_id, seed)) % 7) / 1000

    runs = []
    for seed in (1, 2, 3):
        world = make_world(
            folder=make_world().folder / str(seed),
            buffer_config={"max_staleness": 0, "groups_per_step": 3, "max_concurrent": 8},
            rewards=rewards,
            delay_s=jitter,
            num_tasks=20,
        )
        await world.run()
        runs.append((world.learner.history, [group_id for group_id, _ in world.env_pool.started]))
    assert runs[0] == runs[1] == runs[2]
    history, started = runs[0]
    assert task_indices(started) == list(range(20))
    assert task_indices(world.trained) == [index for index in range(20) if index % 4 != 1]
    assert history[0] == ["0/0/0", "0/2/0", "0/3/0"]


async def test_lock_step_starts_groups_in_waves(make_world: MakeWorld) -> None:
    events: list[tuple[str, int]] = []

    def delay_s(work: GroupWork) -> float:
        index = parse_group_id(work.group_id)[1]
        events.append(("start", index))
        return 0.001 if index == 0 else 0.02

    def rewards(work: GroupWork) -> Any:
        index = parse_group_id(work.group_id)[1]
        events.append(("end", index))
        return equal_rewards(work) if index == 0 else different_rewards(work)

    sections = {"max_staleness": 0, "groups_per_step": 3, "max_concurrent": 8}
    await make_world(buffer_config=sections, delay_s=delay_s, rewards=rewards, num_tasks=4).run()
    assert events[:3] == [("start", 0), ("start", 1), ("start", 2)]
    assert events[3] == ("end", 0)  # filtered, its slot is free
    assert sorted(events[4:6]) == [("end", 1), ("end", 2)]
    assert events[6] == ("start", 3)


@pytest.mark.parametrize("error", [ZeroDivisionError("in an env"), KeyError("x"), TimeoutError("inside a tool")])
async def test_a_failure_surfaces_with_its_own_type(make_world: MakeWorld, error: Exception) -> None:
    def rewards(work: GroupWork) -> Any:
        if work.group_id == "0/5/0":
            raise error
        return different_rewards(work)

    world = make_world(rewards=rewards)
    with pytest.raises(type(error)) as caught:
        await world.run()
    assert caught.value is error
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith(("group", "train", "dispatch"))]


async def test_a_failing_sink_fails_the_run(make_world: MakeWorld) -> None:
    world = make_world(delay_s=0.005)

    async def sink(group: object) -> None:
        raise PermissionError("run directory")

    world._sink = sink
    world.driver = world.make_driver()
    with pytest.raises(PermissionError):
        await world.run()


async def test_a_blob_that_cannot_be_stored_fails_its_group_only(make_world: MakeWorld) -> None:
    world = make_world()
    put = world.blobs.put_if_absent

    async def flaky_put(digest: str, data: bytes) -> None:
        if data == b"image 3":
            raise BlobMissingError("gone")
        await put(digest, data)

    world.blobs.put_if_absent = flaky_put
    await world.run()
    assert (await world.check_ledger()).counts["failed"] == 1


async def test_a_folder_with_checkpoints_is_not_started_afresh(make_world: MakeWorld) -> None:
    world = make_world()
    await world.run()
    with pytest.raises(ConfigError, match="resume it, or give another folder"):
        await make_world(folder=world.folder).run()


async def test_a_learner_that_dies_before_a_checkpoint_fails_the_run(make_world: MakeWorld) -> None:
    world = make_world()
    world.learner.die_in_save = {1}
    with pytest.raises(RunFailedError, match="before the checkpoint of the start"):
        await world.run()
