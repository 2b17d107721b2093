"""The learner group of one process over the real buffer and blob store: lease, ack, expiry, publish, lock-step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from learner_batches import make_group

from medvista_ray.buffer.local import LocalReplayBuffer
from medvista_ray.buffer.replay_buffer import ReplayBuffer
from medvista_ray.config.schema import BufferConfig
from medvista_ray.errors import LeaseExpiredError
from medvista_ray.images.store import FolderBlobStore, LocalBlobStore
from medvista_ray.learner.local_group import LocalLearnerGroup
from medvista_ray.learner.rank import LearnerRank
from medvista_ray.rollout.batching import make_batch_cutter
from medvista_ray.testing.clock import ManualClock
from medvista_ray.types.delivery import Admitted, ConsumerSettings, TrainReport, Wait, WaitReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """One run without envs and engines."""

    group: LocalLearnerGroup
    buffer: LocalReplayBuffer
    clock: ManualClock
    rank: LearnerRank
    fence: int
    commit: Callable[[int], Awaitable[None]]  # admit and commit the n-th group


@pytest_asyncio.fixture
async def make_setup(make_rank, images, image_token_id, tmp_path: Path) -> AsyncIterator[Callable]:
    made: list[Setup] = []

    async def make(name: str) -> Setup:
        config = BufferConfig(groups_per_step=2, max_staleness=0, ack_wait_s=10.0)
        clock = ManualClock()
        buffer = LocalReplayBuffer(ReplayBuffer(config, cut_batch=make_batch_cutter(normalize_std=True)), clock)
        blobs = LocalBlobStore(FolderBlobStore(tmp_path / name / "blobs"))
        for digest, data in images.items():
            await blobs.put_if_absent(digest, data)
        rank = make_rank()
        group = LocalLearnerGroup(lambda: rank, buffer=buffer, blobs=blobs, weights_folder=tmp_path / name / "weights")
        settings = ConsumerSettings(groups_per_step=2, max_staleness=0)
        attached = await buffer.attach(settings, incarnation=0)

        async def commit(index: int) -> None:
            group_id = f"0/{index}/0"
            assert isinstance(await buffer.admit(group_id, incarnation=0), Admitted)
            version = (await buffer.status()).policy_version
            digests = list(images)[index % 3 :][:2]
            await buffer.commit(make_group(group_id, digests=digests, image_token_id=image_token_id, version=version))

        made.append(Setup(group=group, buffer=buffer, clock=clock, rank=rank, fence=attached.fence, commit=commit))
        return made[-1]

    yield make
    for setup in made:
        await setup.group.close()
        await setup.group.close()  # idempotent


async def train_one(setup: Setup, version: int) -> TrainReport:
    """Train one batch of two new groups and publish it."""
    for index in (2 * version, 2 * version + 1):
        await setup.commit(index)
    report = await setup.group.train_step(fence=setup.fence, train_from_version=version)
    assert isinstance(report, TrainReport)
    await setup.group.write_weights(version + 1)
    await setup.buffer.publish(version + 1, batch_id=report.lease_id, fence=setup.fence)
    return report


async def test_a_batch_is_leased_trained_acked_and_reported(make_setup) -> None:
    setup = await make_setup("a")
    before = setup.rank.full_state_dict()
    waiting = await setup.group.train_step(fence=setup.fence, train_from_version=0)
    assert waiting == Wait(reason=WaitReason.GROUP_INCOMPLETE)
    report = await train_one(setup, 0)
    assert report.group_ids == ("0/0/0", "0/1/0")
    assert report.staleness == (0, 0)
    assert report.metrics["learner/samples/count"] == 6
    assert report.metrics["learner/reward/mean"] == pytest.approx(1 / 3)
    assert report.metrics["learner/train_s/total"] > 0
    assert report.max_abs_logprob_diff is not None  # every token says version 0
    assert (await setup.buffer.status()).counts["consumed"] == 2
    after = setup.rank.full_state_dict()
    assert any(not torch.equal(before[name], tensor) for name, tensor in after.items())


async def test_a_lease_that_expired_during_the_gradients_changes_nothing(make_setup, monkeypatch) -> None:
    setup = await make_setup("a")
    await setup.commit(0)
    await setup.commit(1)
    before = setup.rank.full_state_dict()
    monkeypatch.setattr(setup.buffer, "ack", _ack_after_expiry(setup))
    with pytest.raises(LeaseExpiredError):
        await setup.group.train_step(fence=setup.fence, train_from_version=0)
    monkeypatch.undo()
    after = setup.rank.full_state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    assert setup.rank.num_updates == 0
    report = await setup.group.train_step(fence=setup.fence, train_from_version=0)  # the same groups, once more
    assert isinstance(report, TrainReport)
    assert report.group_ids == ("0/0/0", "0/1/0")
    assert setup.rank.num_updates == 1


async def test_a_cancelled_step_frees_its_caller_at_once_and_leaves_nothing(make_setup, monkeypatch, tmp_path) -> None:
    setup = await make_setup("a")
    await setup.commit(0)
    await setup.commit(1)
    before = setup.rank.full_state_dict()
    begun, may_go_on = threading.Event(), threading.Event()
    real_begin = setup.rank.begin_batch

    def long_begin(*arguments: Any) -> None:
        real_begin(*arguments)
        begun.set()
        assert may_go_on.wait(30)

    monkeypatch.setattr(setup.rank, "begin_batch", long_begin)
    step = asyncio.create_task(setup.group.train_step(fence=setup.fence, train_from_version=0))
    assert await asyncio.to_thread(begun.wait, 30)
    step.cancel()
    async with asyncio.timeout(1):  # the thread still computes
        with pytest.raises(asyncio.CancelledError):
            await step
    saving = asyncio.create_task(setup.group.save_checkpoint(str(tmp_path)))
    may_go_on.set()
    await saving
    after = setup.rank.full_state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    assert all(parameter.grad is None for parameter in setup.rank.policy.network.parameters())
    assert (await setup.buffer.status()).counts["leased"] == 2


def _ack_after_expiry(setup: Setup) -> Callable[..., Awaitable[None]]:
    """Return an ack before which the lease runs out and the driver's tick takes it back."""
    real_ack = setup.buffer.ack

    async def ack(lease_id: str, *, fence: int) -> None:
        setup.clock.advance(11.0)
        assert await setup.buffer.expire() == ["0/0/0", "0/1/0"]
        await real_ack(lease_id, fence=fence)

    return ack


async def test_two_runs_in_lock_step_write_the_same_bytes(make_setup) -> None:
    first, second = await make_setup("a"), await make_setup("b")
    digests = []
    for setup in (first, second):
        for version in range(2):
            await train_one(setup, version)
        digests.append((await setup.group.write_weights(2)).digest)
    assert digests[0] == digests[1]


async def test_a_resumed_run_ends_with_the_same_weights(make_setup, tmp_path: Path) -> None:
    through, first = await make_setup("a"), await make_setup("b")
    for version in range(3):
        await train_one(through, version)
    await train_one(first, 0)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    await first.group.save_checkpoint(str(checkpoint))
    resumed = await make_setup("c")
    await train_one(resumed, 0)  # its buffer is where the checkpoint was; its weights are then replaced
    await resumed.group.load_checkpoint(str(checkpoint))
    for version in (1, 2):
        await train_one(resumed, version)
    expected = (await through.group.write_weights(3)).digest
    assert (await resumed.group.write_weights(3)).digest == expected


async def test_logprobs_come_without_a_lease(make_setup, samples, images) -> None:
    setup = await make_setup("a")
    found = await setup.group.compute_logprobs(samples)
    for logprobs, expected in zip(found, setup.rank.compute_logprobs(samples, images), strict=True):
        np.testing.assert_array_equal(logprobs, expected)
