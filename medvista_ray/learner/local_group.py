"""The learner group of one process: one rank in a thread of its own. Knows the protocols; not the loops that call it.

    train_step: fetch -> shard -> bytes of its images -> gradients (thread) -> ack -> update (thread)

Everything that touches the rank runs in one thread, one thing after another, so calls never overlap and the same calls
give the same weights. Nobody can stop a thread: the caller of a step that is cancelled goes on at once, the thread ends
what it computes, and what is called next waits for that. Cancelled before its ack, the step leaves nothing behind;
after it, the update is finished.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from medvista_ray.learner.microbatches import TokenStream
from medvista_ray.learner.rank import LearnerRank, StepResult
from medvista_ray.types.delivery import Lease, TrainReport, Wait
from medvista_ray.types.protocols import BlobStore, ReplayBuffer
from medvista_ray.types.samples import BatchShard, TrainingSample
from medvista_ray.types.sampling import WeightUpdate

R = TypeVar("R")


class LocalLearnerGroup:
    """Implements `LearnerGroup` over one `LearnerRank`."""

    def __init__(
        self, make_rank: Callable[[], LearnerRank], *, buffer: ReplayBuffer, blobs: BlobStore, weights_folder: Path
    ) -> None:
        """Build the rank in the learner's thread at the first call that needs it.

        Args:
            make_rank: builds a rank with world_size 1.
            buffer: where leases come from.
            blobs: where the bytes of images come from.
            weights_folder: where weight files go; the newest two are kept.
        """
        self._make_rank = make_rank
        self._rank: LearnerRank | None = None
        self._buffer = buffer
        self._blobs = blobs
        self._weights_folder = weights_folder
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="learner")
        self._must_drop = False  # a step has ended before its ack; the thread's next call first forgets its gradients

    async def train_step(self, *, fence: int, train_from_version: int) -> TrainReport | Wait:
        """Lease a batch, train it, ack before the first update; `LeaseExpiredError` if it went back."""
        lease = await self._buffer.fetch(fence=fence, train_from_version=train_from_version)
        if isinstance(lease, Wait):
            return lease
        started_s = time.perf_counter()
        result = await self._train(lease, fence=fence)
        return TrainReport(
            lease_id=lease.lease_id,
            train_from_version=lease.train_from_version,
            group_ids=lease.group_ids,
            staleness=lease.staleness,
            metrics={**result.metrics, "learner/train_s/total": time.perf_counter() - started_s},
            max_abs_logprob_diff=result.max_abs_logprob_diff,
        )

    async def write_weights(self, policy_version: int) -> WeightUpdate:
        """Write the current weights into the weights folder."""
        update = await self._in_thread(lambda rank: rank.write_weights(policy_version, self._weights_folder))
        assert update is not None, "the only rank is rank 0"
        return update

    async def compute_logprobs(self, samples: Sequence[TrainingSample]) -> list[np.ndarray]:
        """Return the learner's logprobs of each sample, float32 [L], 0.0 off the mask."""
        images = await self._fetch_images(samples)
        return await self._in_thread(lambda rank: rank.compute_logprobs(samples, images))

    async def save_checkpoint(self, path: str) -> None:
        """Write weights, optimizer and RNG into an existing folder."""
        await self._in_thread(lambda rank: rank.save_checkpoint(Path(path)))

    async def load_checkpoint(self, path: str) -> None:
        """Restore what `save_checkpoint` wrote."""
        await self._in_thread(lambda rank: rank.load_checkpoint(Path(path)))

    async def export(self, path: str) -> None:
        """Write the policy as an ordinary Hugging Face folder."""
        await self._in_thread(lambda rank: rank.export(Path(path)))

    async def close(self) -> None:
        """Wait for the thread's last task and end it; a second call does nothing."""
        if self._rank is not None:
            await self._in_thread(lambda rank: rank.close())
            self._rank = None
        self._thread.shutdown()

    async def _train(self, lease: Lease, *, fence: int) -> StepResult:
        shard: BatchShard = await self._buffer.shard(lease.lease_id, rank=0)
        images = await self._fetch_images(shard.samples)
        is_acked = False
        try:
            await self._in_thread(lambda rank: rank.begin_batch(shard, images))
            await self._buffer.ack(lease.lease_id, fence=fence)
            is_acked = True
        finally:
            self._must_drop = not is_acked
        return await self._in_thread(lambda rank: rank.finish_batch())

    async def _fetch_images(self, streams: Sequence[TokenStream]) -> dict[str, bytes]:
        digests = list(dict.fromkeys(span.digest for stream in streams for span in stream.image_spans))
        return dict(zip(digests, await self._blobs.get_many(digests), strict=True))

    async def _in_thread(self, call: Callable[[LearnerRank], R]) -> R:
        def run() -> R:
            if self._rank is None:
                self._rank = self._make_rank()
            if self._must_drop:
                self._must_drop = False
                self._rank.drop_gradients()
            return call(self._rank)

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)
