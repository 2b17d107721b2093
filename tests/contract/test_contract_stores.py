"""Blob store and replay buffer: the same calls, in this process and in an actor's, answer alike."""

from __future__ import annotations

import asyncio
import hashlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from small_runs import make_small_config

from medvista_ray.assembly import RunPaths, make_replay_buffer
from medvista_ray.buffer.local import LocalReplayBuffer
from medvista_ray.errors import BlobMissingError, FenceError, LeaseExpiredError
from medvista_ray.images.store import FolderBlobStore, LocalBlobStore
from medvista_ray.testing.records import make_group
from medvista_ray.types.delivery import Admitted, CommitResult, ConsumerSettings, Lease, Wait, WaitReason
from medvista_ray.types.protocols import BlobStore, ReplayBuffer
from medvista_ray.types.trajectories import TrajectoryGroup

pytest.importorskip("ray")
pytestmark = pytest.mark.asyncio(loop_scope="module")

CONFIG = make_small_config(Path("policy"), buffer={"max_staleness": 1, "ack_wait_s": 0.05})
SETTINGS = ConsumerSettings(groups_per_step=2, max_staleness=1, world_size=2)


@pytest.fixture(scope="module")
def store_actors(ray_here: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """One blob store and one buffer in processes of their own; `start` empties the buffer again."""
    import ray

    from medvista_ray.cluster.connection import connect
    from medvista_ray.cluster.launch import Launcher

    folder = tmp_path_factory.mktemp("stores")
    connection = connect(CONFIG.cluster, num_cpus=0, num_gpus=0)
    paths = RunPaths(blobs=folder / "blobs", weights=folder / "weights")
    launcher = Launcher(config=CONFIG, paths=paths, connection=connection)
    actors = launcher.make_blob_store(), launcher.make_buffer()
    yield actors
    for actor in actors:
        ray.kill(actor)


@pytest_asyncio.fixture(loop_scope="module", params=["local", "ray"])
async def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "local":
        return LocalBlobStore(FolderBlobStore(tmp_path))
    from medvista_ray.cluster.stores import RemoteBlobStore

    return RemoteBlobStore(request.getfixturevalue("store_actors")[0], cache_bytes=2**16)


@pytest_asyncio.fixture(loop_scope="module", params=["local", "ray"])
async def buffer(request: pytest.FixtureRequest) -> ReplayBuffer:
    if request.param == "local":
        return LocalReplayBuffer(make_replay_buffer(CONFIG), asyncio.get_running_loop().time)
    from medvista_ray.cluster.stores import RemoteReplayBuffer

    actor = request.getfixturevalue("store_actors")[1]
    await actor.start.remote(CONFIG)
    return pickle.loads(pickle.dumps(RemoteReplayBuffer(actor)))  # a shard gets it this way


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def commit(buffer: ReplayBuffer, group_id: str, **changes: Any) -> TrajectoryGroup:
    """Admit a group and store it."""
    assert isinstance(await buffer.admit(group_id, incarnation=0), Admitted)
    group = make_group(group_id, **changes)
    assert await buffer.commit(group) is CommitResult.ACCEPTED
    return group


# --- blobs
async def test_blobs_come_back_in_order_and_repeated(blobs: BlobStore) -> None:
    data = [bytes([value]) * 50_000 for value in range(3)]  # more than the cache of the remote one holds
    for one in data:
        await blobs.put_if_absent(digest_of(one), one)
    await blobs.put_if_absent(digest_of(data[0]), data[0])
    order = [2, 0, 2, 1]
    assert await blobs.get_many([digest_of(data[index]) for index in order]) == [data[index] for index in order]
    assert await blobs.get_many([]) == []


async def test_a_blob_that_leaves_the_cache_while_others_are_fetched_is_there(store_actors: tuple[Any, Any]) -> None:
    from medvista_ray.cluster.stores import RemoteBlobStore

    here, elsewhere = b"here" * 10_000, b"elsewhere" * 5_000
    blobs = RemoteBlobStore(store_actors[0], cache_bytes=2**16)  # holds one of them
    for data in (elsewhere, here):
        await blobs.put_if_absent(digest_of(data), data)
    asked = asyncio.create_task(blobs.get_many([digest_of(here), digest_of(elsewhere)]))
    await asyncio.sleep(0)
    blobs._cache.put(b"other" * 10_000)  # the end of somebody's put
    assert await asked == [here, elsewhere]


async def test_a_missing_blob_is_named(blobs: BlobStore) -> None:
    await blobs.put_if_absent(digest_of(b"here"), b"here")
    with pytest.raises(BlobMissingError, match=digest_of(b"not here")[:12]) as caught:
        await blobs.get_many([digest_of(b"here"), digest_of(b"not here")])
    assert type(caught.value) is BlobMissingError


async def test_bytes_of_another_digest_are_refused(blobs: BlobStore) -> None:
    with pytest.raises(BlobMissingError, match="do not have the digest"):
        await blobs.put_if_absent(digest_of(b"promised"), b"given")
    await blobs.put_if_absent(digest_of(b"promised"), b"promised")
    assert await blobs.get_many([digest_of(b"promised")]) == [b"promised"]


async def test_one_caller_that_goes_leaves_the_blob_to_the_others(blobs: BlobStore) -> None:
    data = b"shared" * 1000
    first, second = [asyncio.create_task(blobs.put_if_absent(digest_of(data), data)) for _ in range(2)]
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert await blobs.get_many([digest_of(data)]) == [data]


# --- the buffer
async def test_a_batch_from_admission_to_publish(buffer: ReplayBuffer) -> None:
    first, second = [await commit(buffer, f"0/{index}/0", rewards=(0.0, 1.0, None)) for index in range(2)]
    attached = await buffer.attach(SETTINGS, incarnation=0)
    lease = await buffer.fetch(fence=attached.fence, train_from_version=0)
    assert isinstance(lease, Lease)
    assert lease.group_ids == (first.group_id, second.group_id)
    shards = [await buffer.shard(lease.lease_id, rank=rank) for rank in range(2)]
    assert [shard.totals.num_groups for shard in shards] == [2, 2]
    samples = [sample for shard in shards for sample in shard.samples]
    assert sorted((sample.group_id, sample.member) for sample in samples) == [
        ("0/0/0", 0), ("0/0/0", 1), ("0/1/0", 0), ("0/1/0", 1),
    ]  # fmt: skip
    sample = samples[0]
    sent = first.trajectories[0]
    assert sample.token_ids.tolist() == sent.token_ids.tolist()
    assert sample.logprobs.tolist() == sent.logprobs.tolist()
    assert not sample.token_ids.flags.writeable
    await buffer.ack(lease.lease_id, fence=attached.fence)
    await buffer.publish(1, batch_id=lease.lease_id, fence=attached.fence)
    status = await buffer.status()
    assert status.policy_version == 1
    assert status.counts["consumed"] == 2
    await buffer.end_tasks(incarnation=0)
    wait = await buffer.fetch(fence=attached.fence, train_from_version=1)
    assert wait == Wait(reason=WaitReason.END_OF_DATA)


async def test_a_late_attempt_is_superseded(buffer: ReplayBuffer) -> None:
    admitted = await buffer.admit("0/0/0", incarnation=0)
    assert isinstance(admitted, Admitted)
    again = await buffer.attempt("0/0/0", replaces=admitted.attempt, incarnation=0)
    assert again is not None
    assert [one.attempt for one in await buffer.running()] == [again.attempt] == [admitted.attempt + 1]
    assert await buffer.commit(make_group("0/0/0", attempt=admitted.attempt)) is CommitResult.SUPERSEDED
    assert await buffer.commit(make_group("0/0/0", attempt=again.attempt)) is CommitResult.ACCEPTED
    assert await buffer.attempt("0/0/0", replaces=again.attempt, incarnation=0) is None


async def test_an_overdue_lease_goes_back(buffer: ReplayBuffer) -> None:
    for index in range(2):
        await commit(buffer, f"0/{index}/0")
    attached = await buffer.attach(SETTINGS)
    lease = await buffer.fetch(fence=attached.fence, train_from_version=0)
    assert isinstance(lease, Lease)
    assert await buffer.extend(lease.lease_id, fence=attached.fence) >= lease.deadline_s
    assert await buffer.expire() == []
    await asyncio.sleep(0.06)
    assert await buffer.expire() == ["0/0/0", "0/1/0"]
    with pytest.raises(LeaseExpiredError) as caught:
        await buffer.ack(lease.lease_id, fence=attached.fence)
    assert type(caught.value) is LeaseExpiredError
    with pytest.raises(LeaseExpiredError):
        await buffer.shard(lease.lease_id, rank=0)
    again = await buffer.fetch(fence=attached.fence, train_from_version=0)
    assert isinstance(again, Lease)
    assert again.delivery_count == 2
    await buffer.nack(again.lease_id, fence=attached.fence)
    assert (await buffer.status()).counts["ready"] == 2


async def test_an_old_fence_or_incarnation_is_refused(buffer: ReplayBuffer) -> None:
    old = await buffer.attach(SETTINGS)
    await buffer.attach(SETTINGS)
    with pytest.raises(FenceError) as caught:
        await buffer.fetch(fence=old.fence, train_from_version=0)
    assert type(caught.value) is FenceError
    with pytest.raises(FenceError):
        await buffer.admit("0/0/0", incarnation=1)
    with pytest.raises(ValueError, match="limit must be >= 1"):
        await buffer.read(after=(0, 0), limit=0)


async def test_ends_without_a_batch(buffer: ReplayBuffer) -> None:
    for index in range(2):
        assert isinstance(await buffer.admit(f"0/{index}/0", incarnation=0), Admitted)
    await buffer.cancel("0/0/0", incarnation=0)
    await buffer.fail("0/1/0", reason="DataError: scripted", incarnation=0)
    assert await buffer.to_issue_again() == ["0/0/1"]
    status = await buffer.status()
    assert (status.counts["cancelled"], status.counts["failed"]) == (1, 1)


async def test_a_checkpoint_and_the_journal(buffer: ReplayBuffer) -> None:
    group = await commit(buffer, "0/0/0")
    snapshot = await buffer.snapshot()
    await commit(buffer, "0/1/0", rewards=(1.0, 1.0))
    page = await buffer.read(after=(0, 0), limit=10)
    assert [entry.group_id if isinstance(entry, TrajectoryGroup) else entry for _, entry in page.entries] == [
        "0/0/0", "0/1/0", ("0/1/0", "filtered"),
    ]  # fmt: skip
    found = page.entries[0][1]
    assert isinstance(found, TrajectoryGroup)
    assert found.trajectories[1].token_ids.tolist() == group.trajectories[1].token_ids.tolist()
    incarnation = await buffer.cut(snapshot, contained_batch_ids=(), policy_version=0)
    assert incarnation == 1
    status = await buffer.status()
    assert (status.incarnation, status.counts["ready"], status.counts["filtered"]) == (1, 1, 0)
    assert (await buffer.read(after=page.cursor, limit=10)).rewound
