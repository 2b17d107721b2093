"""The actors: construct a plain class and forward to it, nothing else.

Importing this loads neither torch nor transformers. Options (resources, restarts, concurrency) stand beside
`ray.remote` in `launch.py`.

`start` builds what may fail, and not the constructor: the error of a method arrives as its own type, that of a
constructor as a dead actor. `live` never answers: its reference fails when the process ends, which is how the driver
learns of a death without asking.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import ray

from medvista_ray.assembly import (
    MIB,
    ActorRecord,
    make_batching_engine,
    make_learner_rank,
    make_replay_buffer,
    make_router,
    make_shard,
)
from medvista_ray.buffer.local import LocalReplayBuffer
from medvista_ray.cluster.stores import RemoteBlobStore, RemoteReplayBuffer, encode_page
from medvista_ray.config.schema import RunConfig
from medvista_ray.images.store import FolderBlobStore
from medvista_ray.types import wire
from medvista_ray.types.delivery import CommitResult, GroupWork, Lease, Receipt, TrainReport, Wait
from medvista_ray.types.protocols import EngineSet
from medvista_ray.types.samples import TrainingSample
from medvista_ray.types.sampling import GenerateRequest, GenerateResult, WeightUpdate

if TYPE_CHECKING:
    from medvista_ray.inference.batcher import BatchingEngine
    from medvista_ray.learner.rank import LearnerRank
    from medvista_ray.rollout.shard import EnvShard

R = TypeVar("R")
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorHome:
    """Where an actor runs."""

    record: ActorRecord
    node_id: str


def home_of(actor: object) -> ActorHome:
    """Return where an actor runs; called inside of it."""
    record = ActorRecord(name=type(actor).__name__, pid=os.getpid())
    return ActorHome(record=record, node_id=ray.get_runtime_context().get_node_id())


class BlobStoreActor:
    """Owns the blobs of a run. Its methods run in threads, so that a slow disk holds up nobody else's call."""

    def __init__(self, folder: Path) -> None:
        self._store = FolderBlobStore(folder)  # in the constructor: Ray runs it again when it restarts this actor

    def start(self) -> ActorHome:
        """Say where this runs."""
        return home_of(self)

    def put_if_absent(self, digest: str, data: bytes) -> None:
        """Store bytes under their SHA-256."""
        self._store.put_if_absent(digest, data)

    def get_many(self, digests: Sequence[str]) -> list[bytes]:
        """Return the bytes of each digest."""
        return [self._store.get(digest) for digest in digests]


class ReplayBufferActor:
    """Owns the ledger and its groups; records come and go as msgpack bytes."""

    async def start(self, config: RunConfig) -> ActorHome:
        """Make an empty buffer."""
        self._buffer = LocalReplayBuffer(make_replay_buffer(config), time.monotonic)
        return home_of(self)

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Forward a call whose arguments and answer are small."""
        return await getattr(self._buffer, method)(*args, **kwargs)

    async def commit(self, group: bytes) -> CommitResult:
        """Store a finished group."""
        return await self._buffer.commit(wire.decode_group(group))

    async def shard(self, lease_id: str, *, rank: int) -> bytes:
        """Return one rank's part of a batch."""
        return wire.encode_shard(await self._buffer.shard(lease_id, rank=rank))

    async def read(self, *, after: tuple[int, int], limit: int) -> Any:
        """Return a page of the journal."""
        return encode_page(await self._buffer.read(after=after, limit=limit))


class EnvShardActor:
    """One env shard."""

    _shard: EnvShard

    async def start(self, config: RunConfig, *, blobs: Any, buffer: Any, services: Mapping[str, Any]) -> ActorHome:
        """Make the shard; `blobs`, `buffer` and the values of `services` are actors."""
        from medvista_ray.cluster.tool_services import RemoteToolService

        self._shard = make_shard(
            config,
            num_slots=config.rollout.slots_per_shard,
            router=make_router(config),
            blobs=RemoteBlobStore(blobs, cache_bytes=config.rollout.blob_cache_mb * MIB),
            buffer=RemoteReplayBuffer(buffer),
            services={name: RemoteToolService(actor) for name, actor in services.items()},
        )
        return home_of(self)

    async def live(self) -> None:
        """Wait until the process ends."""
        await asyncio.Event().wait()

    async def run_group(self, work: GroupWork) -> Receipt:
        """Run one group and commit it."""
        return await self._shard.run_group(work)

    async def cancel_group(self, group_id: str) -> None:
        """Stop a running group."""
        await self._shard.cancel_group(group_id)

    async def set_engines(self, engines: EngineSet) -> None:
        """Take a newer engine set."""
        self._shard.set_engines(engines)

    async def close(self) -> None:
        """Cancel what runs and stop the tool workers."""
        await self._shard.close()


class EngineActor:
    """One engine."""

    _engine: BatchingEngine

    async def start(self, config: RunConfig, *, engine_id: str, blobs: Any) -> ActorHome:
        """Load the policy; the engine stays closed until its first swap."""
        store = RemoteBlobStore(blobs, cache_bytes=config.rollout.blob_cache_mb * MIB)
        self._engine = make_batching_engine(config, engine_id=engine_id, blobs=store)
        return home_of(self)

    async def live(self) -> None:
        """Wait until the process ends, or its engine breaks."""
        while not self._engine.is_dead:  # noqa: ASYNC110 - a plain class that tells nobody
            await asyncio.sleep(_LOOK_S)

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        """Sample one action."""
        return await self._engine.generate(request)

    async def stage(self, update: WeightUpdate) -> None:
        """Read and verify weights while serving."""
        await self._engine.stage(update)

    async def swap(self, policy_version: int) -> str:
        """Load the staged weights; return their checksum."""
        return await self._engine.swap(policy_version)


class LearnerActor:
    """One rank of the learner, in a thread of its own: the event loop answers while it computes."""

    def _in_thread(self, call: Callable[[LearnerRank], R]) -> asyncio.Future[R]:
        return asyncio.get_running_loop().run_in_executor(self._thread, lambda: call(self._rank))

    async def meeting_point(self) -> str:
        """Return an address at which the ranks can meet, on the node of this one."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    async def start(
        self, config: RunConfig, *, rank: int, init_method: str, buffer: Any, blobs: Any, weights_folder: Path
    ) -> ActorHome:
        """Load the policy and meet the other ranks. Collective."""
        import torch

        from medvista_ray.learner.process_group import RankAddress

        address = RankAddress(rank=rank, world_size=config.learner.world_size, init_method=init_method)
        self._buffer = RemoteReplayBuffer(buffer)
        self._blobs = RemoteBlobStore(blobs, cache_bytes=config.rollout.blob_cache_mb * MIB)
        self._weights_folder = weights_folder
        self._address = address
        self._thread = ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix="learner",
            initializer=torch.set_num_threads,
            initargs=(config.learner.num_threads,),
        )
        loop = asyncio.get_running_loop()
        self._rank = await loop.run_in_executor(self._thread, lambda: make_learner_rank(config, address=address))
        return home_of(self)

    async def live(self) -> None:
        """Wait until the process ends."""
        await asyncio.Event().wait()

    # --- one train step, in this order
    async def fetch(self, *, fence: int, train_from_version: int) -> Lease | Wait:
        """Lease a batch (rank 0)."""
        return await self._buffer.fetch(fence=fence, train_from_version=train_from_version)

    async def load_batch(self, lease_id: str) -> None:
        """Fetch this rank's part of a batch, and the bytes of its images."""
        self._started_s = time.perf_counter()
        self._shard = await self._buffer.shard(lease_id, rank=self._address.rank)
        self._images = await self._fetch_images(self._shard.samples)

    async def begin_batch(self) -> None:
        """Compute the gradients of the first minibatch. Collective."""
        shard, images = self._shard, self._images
        await self._in_thread(lambda rank: rank.begin_batch(shard, images))

    async def ack(self, lease_id: str, *, fence: int) -> None:
        """Claim the batch (rank 0)."""
        await self._buffer.ack(lease_id, fence=fence)

    async def drop_gradients(self) -> None:
        """Forget the batch; weights and optimizer are as before it."""
        await self._in_thread(lambda rank: rank.drop_gradients())

    async def finish_batch(self, lease: Lease) -> TrainReport:
        """Update the weights. Collective."""
        result = await self._in_thread(lambda rank: rank.finish_batch())
        return TrainReport(
            lease_id=lease.lease_id,
            train_from_version=lease.train_from_version,
            group_ids=lease.group_ids,
            staleness=lease.staleness,
            metrics={**result.metrics, "learner/train_s/total": time.perf_counter() - self._started_s},
            max_abs_logprob_diff=result.max_abs_logprob_diff,
        )

    # --- weights and checkpoints
    async def write_weights(self, policy_version: int) -> WeightUpdate | None:
        """Write the weights; the update on rank 0. Collective."""
        return await self._in_thread(lambda rank: rank.write_weights(policy_version, self._weights_folder))

    async def compute_logprobs(self, samples: Sequence[TrainingSample]) -> list[np.ndarray]:
        """Return the logprobs of each sample. Collective."""
        images = await self._fetch_images(samples)
        return await self._in_thread(lambda rank: rank.compute_logprobs(samples, images))

    async def save_checkpoint(self, path: str) -> None:
        """Write what this rank holds."""
        await self._in_thread(lambda rank: rank.save_checkpoint(Path(path)))

    async def load_checkpoint(self, path: str) -> None:
        """Restore what this rank has written."""
        await self._in_thread(lambda rank: rank.load_checkpoint(Path(path)))

    async def export(self, path: str) -> None:
        """Write a Hugging Face folder, from rank 0. Collective."""
        await self._in_thread(lambda rank: rank.export(Path(path)))

    async def _fetch_images(self, samples: Sequence[TrainingSample]) -> dict[str, bytes]:
        digests = list(dict.fromkeys(span.digest for sample in samples for span in sample.image_spans))
        return dict(zip(digests, await self._blobs.get_many(digests), strict=True))
