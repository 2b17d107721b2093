"""Env pool, engines and learner of both composition roots: the same calls on the same weights answer alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from small_runs import make_small_config, make_small_tasks

from medvista_ray.assembly import RunPaths, Runtime
from medvista_ray.config.schema import RunConfig
from medvista_ray.errors import BlobMissingError, ConfigError, FenceError, LeaseExpiredError, WeightsRefusedError
from medvista_ray.types.delivery import (
    Admitted,
    CommitResult,
    ConsumerSettings,
    GroupWork,
    Receipt,
    TrainReport,
    Wait,
    WaitReason,
)
from medvista_ray.types.messages import ImageRef
from medvista_ray.types.protocols import TaskRecord
from medvista_ray.types.samples import make_training_sample
from medvista_ray.types.sampling import GenerateRequest, SamplingSpec
from medvista_ray.types.trajectories import TrajectoryGroup

pytest.importorskip("ray")
pytestmark = pytest.mark.asyncio(loop_scope="module")


class World:
    """A runtime whose engines serve version 0; every test starts with an empty ledger."""

    def __init__(self, config: RunConfig, runtime: Runtime) -> None:
        self.config = config
        self.runtime = runtime
        self.parts = runtime.parts
        self.tasks = make_small_tasks(config)
        self.incarnation = 0
        self.policy_version = 0

    async def open(self) -> None:
        self._empty = await self.parts.buffer.snapshot()
        await self.parts.engines.stage(await self.parts.learner.write_weights(0))
        await self.parts.engines.swap(0)
        await self.parts.env_pool.set_engines(self.parts.engines.engine_set())

    async def begin_test(self) -> None:
        self.policy_version = self._next_task = 0
        self.incarnation = await self.parts.buffer.cut(self._empty, contained_batch_ids=(), policy_version=0)
        self._cursor = (await self.parts.buffer.read(after=(self.incarnation, 10**9), limit=1)).cursor

    async def admit(self) -> GroupWork:
        """Admit the next task and store its images."""
        record: TaskRecord = self.tasks[self._next_task]
        admitted = await self.parts.buffer.admit(f"0/{self._next_task}/0", incarnation=self.incarnation)
        assert isinstance(admitted, Admitted)
        self._next_task += 1
        for digest, data in record.blobs.items():
            await self.parts.blobs.put_if_absent(digest, data)
        return GroupWork(
            task=record.task,
            reference=record.reference,
            group_id=admitted.group_id,
            attempt=admitted.attempt,
            incarnation=self.incarnation,
            group_size=self.config.rollout.group_size,
        )

    async def run_groups(self) -> list[TrajectoryGroup]:
        """Run one batch of groups; return what the journal says they were."""
        works = [await self.admit() for _ in range(self.config.buffer.groups_per_step)]
        await asyncio.gather(*(self.parts.env_pool.run_group(work) for work in works))
        return await self.groups()

    async def groups(self) -> list[TrajectoryGroup]:
        page = await self.parts.buffer.read(after=self._cursor, limit=1000)
        return [entry for _, entry in page.entries if isinstance(entry, TrajectoryGroup)]

    async def attach(self) -> int:
        buffer = self.config.buffer
        settings = ConsumerSettings(groups_per_step=buffer.groups_per_step, max_staleness=buffer.max_staleness)
        return (await self.parts.buffer.attach(settings)).fence

    async def train(self) -> TrainReport | Wait:
        """Train and publish one batch."""
        fence = await self.attach()
        report = await self.parts.learner.train_step(fence=fence, train_from_version=self.policy_version)
        if isinstance(report, TrainReport):
            self.policy_version += 1
            await self.parts.buffer.publish(self.policy_version, batch_id=report.lease_id, fence=fence)
        return report

    async def logprobs(self, groups: list[TrajectoryGroup]) -> list[list[float]]:
        """Score the first group of a list by the learner's weights."""
        samples = [make_training_sample(member, 1.0) for member in groups[0].live]
        return [values.tolist() for values in await self.parts.learner.compute_logprobs(samples)]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["local", "ray"])
async def runtime_world(
    request: pytest.FixtureRequest, small_policy: Path, tmp_path_factory: pytest.TempPathFactory, ray_here: None
) -> AsyncIterator[World]:
    config = make_small_config(small_policy, num_tasks=64, buffer={"ack_wait_s": 0.001})
    folder = tmp_path_factory.mktemp(request.param)
    paths = RunPaths(blobs=folder / "blobs", weights=folder / "weights")
    if request.param == "local":
        from medvista_ray.local import start_local as start
    else:
        from medvista_ray.cluster.launch import start_cluster as start
    world = World(config, await start(config, paths, make_small_tasks(config)))
    await world.open()
    yield world
    await world.runtime.close()
    await world.runtime.close()  # idempotent


@pytest_asyncio.fixture(loop_scope="module")
async def world(runtime_world: World) -> World:
    await runtime_world.begin_test()
    return runtime_world


# --- env pool
async def test_groups_run_side_by_side_and_are_committed(world: World) -> None:
    works = [await world.admit() for _ in range(3)]
    receipts: list[Receipt] = await asyncio.gather(*(world.parts.env_pool.run_group(work) for work in works))
    assert [receipt.group_id for receipt in receipts] == [work.group_id for work in works]
    assert {receipt.result for receipt in receipts} == {CommitResult.ACCEPTED}
    assert all(receipt.rewards == (0.0, 1.0, 0.0, 1.0) for receipt in receipts)
    assert all(receipt.num_broken == 0 < receipt.num_action_tokens < receipt.num_tokens for receipt in receipts)
    assert world.parts.env_pool.num_slots == 8
    groups = await world.groups()
    assert {group.group_id for group in groups} == {work.group_id for work in works}
    digests = {span.digest for group in groups for member in group.live for span in member.image_spans}
    assert all(await world.parts.blobs.get_many(sorted(digests)))


async def test_a_cancelled_group_commits_nothing(world: World) -> None:
    work = await world.admit()
    running = asyncio.create_task(world.parts.env_pool.run_group(work))
    await asyncio.sleep(0.02)
    await world.parts.env_pool.cancel_group(work.group_id)
    with pytest.raises(asyncio.CancelledError):
        await running
    await world.parts.env_pool.cancel_group(work.group_id)  # does not run any more
    assert [admitted.group_id for admitted in await world.parts.buffer.running()] == [work.group_id]


async def test_a_caller_that_goes_takes_its_group_along(world: World) -> None:
    work = await world.admit()
    running = asyncio.create_task(world.parts.env_pool.run_group(work))
    await asyncio.sleep(0.02)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.sleep(0.5)
    assert [admitted.group_id for admitted in await world.parts.buffer.running()] == [work.group_id]


async def test_bad_data_arrive_as_their_own_error(world: World) -> None:
    work = await world.admit()
    lost = ImageRef(digest="0" * 64, width=8, height=8)
    with pytest.raises(BlobMissingError) as caught:
        await world.parts.env_pool.run_group(replace(work, task=replace(work.task, images=(lost,))))
    assert type(caught.value) is BlobMissingError


# --- engines
def request_of(seed: int) -> GenerateRequest:
    return GenerateRequest(
        group_id="0/0/0",
        member=seed,
        turn_index=0,
        token_ids=np.arange(100, 110, dtype=np.int32),
        image_spans=(),
        max_new_tokens=8,
        sampling=SamplingSpec(),
        seed=seed,
    )


async def versions_of(world: World) -> list[int]:
    (engine,) = world.parts.engines.engine_set().engines
    return [span.policy_version for span in (await engine.generate(request_of(1))).version_spans]


async def test_an_engine_answers_the_same_request_the_same(world: World) -> None:
    (engine,) = world.parts.engines.engine_set().engines
    first, second, other = await asyncio.gather(*(engine.generate(request_of(seed)) for seed in (1, 1, 2)))
    assert first.token_ids.tolist() == second.token_ids.tolist() != other.token_ids.tolist()
    assert first.prompt_length == 10
    assert await versions_of(world) == [0]


async def test_a_refused_stage_changes_nothing(world: World) -> None:
    engines = world.parts.engines
    update = await world.parts.learner.write_weights(1)
    before = engines.engine_set().epoch
    with pytest.raises(WeightsRefusedError, match="every engine refused") as caught:
        await engines.stage(replace(update, digest="0" * 64))
    assert type(caught.value) is WeightsRefusedError
    assert engines.engine_set().epoch == before
    assert await engines.recover() == 0
    assert await versions_of(world) == [0]


async def test_a_swap_moves_every_engine_to_the_next_version(world: World) -> None:
    for version in (7, 0):
        await world.parts.engines.stage(await world.parts.learner.write_weights(version))
        await world.parts.engines.swap(version)
        assert await versions_of(world) == [version]


# --- learner
async def test_engine_and_learner_agree(world: World) -> None:
    await world.parts.engines.stage(await world.parts.learner.write_weights(0))
    await world.parts.engines.swap(0)
    engine_ids = [engine.engine_id for engine in world.parts.engines.engine_set().engines]
    report = await world.runtime.probe(0)
    assert list(report.diffs) == engine_ids
    assert report.max_abs_logprob_diff < 1e-4


async def test_without_groups_the_learner_waits_with_a_reason(world: World) -> None:
    assert await world.train() == Wait(reason=WaitReason.GROUP_INCOMPLETE)


async def test_a_train_step_claims_its_batch_and_moves_the_weights(world: World) -> None:
    groups = await world.run_groups()
    before = await world.logprobs(groups)
    fence = await world.attach()
    report = await world.parts.learner.train_step(fence=fence, train_from_version=0)
    assert isinstance(report, TrainReport)
    assert sorted(report.group_ids) == sorted(group.group_id for group in groups)
    assert report.staleness == (0, 0)
    assert report.metrics["learner/train_s/total"] > 0
    assert (await world.parts.buffer.status()).counts["acked"] == 2
    assert await world.logprobs(groups) != before


async def test_a_batch_that_goes_back_trains_nothing(world: World) -> None:
    returned: list[str] = []
    for _ in range(10):  # a train step may claim its batch before the expiry finds it; then the next batch is tried
        groups = (await world.run_groups())[-world.config.buffer.groups_per_step :]
        before = await world.logprobs(groups)
        step = asyncio.create_task(world.train())
        while not returned and not step.done():
            returned = await world.parts.buffer.expire()  # the lease is overdue after a millisecond
            await asyncio.sleep(0.001)
        if returned:
            break
        assert isinstance(await step, TrainReport)
    with pytest.raises(LeaseExpiredError) as caught:
        await step
    assert type(caught.value) is LeaseExpiredError
    assert sorted(returned) == sorted(group.group_id for group in groups)  # groups side by side end in any order
    assert await world.logprobs(groups) == before


async def test_an_abandoned_train_step_leaves_the_learner_in_order(world: World) -> None:
    groups = await world.run_groups()
    step = asyncio.create_task(world.train())
    await asyncio.sleep(0.02)
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    now = await world.logprobs(groups)
    assert await world.logprobs(groups) == now  # the update is done or dropped, never under way


async def test_an_old_fence_trains_nothing(world: World) -> None:
    old = await world.attach()
    await world.attach()
    with pytest.raises(FenceError):
        await world.parts.learner.train_step(fence=old, train_from_version=0)


async def test_a_checkpoint_brings_the_weights_back(world: World, tmp_path: Path) -> None:
    groups = await world.run_groups()
    learner = world.parts.learner
    await learner.save_checkpoint(str(tmp_path))
    before = await world.logprobs(groups)
    assert isinstance(await world.train(), TrainReport)
    assert await world.logprobs(groups) != before
    await learner.load_checkpoint(str(tmp_path))
    assert await world.logprobs(groups) == before
    with pytest.raises(ConfigError):
        await learner.load_checkpoint(str(tmp_path / "elsewhere"))


async def test_the_export_is_a_policy_folder(world: World, tmp_path: Path) -> None:
    await world.parts.learner.export(str(tmp_path / "policy"))
    names = {path.name for path in (tmp_path / "policy").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
