"""Batches over a tiny policy for the tests of the learner; importable from spawned ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medvista_ray.images.codec import digest_of, encode_png
from medvista_ray.types.messages import Task
from medvista_ray.types.samples import BatchShard, BatchTotals, TrainingSample
from medvista_ray.types.trajectories import ImageSpan, Trajectory, TrajectoryGroup, VersionSpan

FIRST_TEXT_ID = 20  # behind the special tokens
NUM_TEXT_IDS = 200
FEATURES = 9  # of an 84 x 84 px view


def make_images(count: int, *, seed: int = 0) -> dict[str, bytes]:
    """Return `count` different 84 x 84 px views by digest."""
    rng = np.random.default_rng(seed)
    encoded = [encode_png(rng.integers(0, 256, (84, 84, 3), dtype=np.uint8)) for _ in range(count)]
    return {digest_of(data): data for data in encoded}


def make_sample(
    member: int, *, digests: Sequence[str], image_token_id: int, seed: int = 0, version: int = 0, reward: float = 0.0
) -> TrainingSample:
    """Return a sample of one turn for each image (one without any): an observation, then an action."""
    rng = np.random.default_rng([seed, member])
    ids: list[np.ndarray] = []
    mask: list[np.ndarray] = []
    image_spans: list[ImageSpan] = []
    version_spans: list[VersionSpan] = []
    length = 0

    def add(tokens: np.ndarray, *, is_action: bool) -> None:
        nonlocal length
        ids.append(tokens)
        mask.append(np.full(len(tokens), is_action))
        length += len(tokens)

    def text(low: int, high: int) -> np.ndarray:
        return rng.integers(FIRST_TEXT_ID, FIRST_TEXT_ID + NUM_TEXT_IDS, int(rng.integers(low, high)))

    for digest in digests or [None]:
        add(text(3, 9), is_action=False)
        if digest is not None:
            image_spans.append(ImageSpan(digest=digest, offset=length, length=FEATURES))
            add(np.full(FEATURES, image_token_id), is_action=False)
            add(text(2, 5), is_action=False)
        start = length
        add(text(3, 8), is_action=True)
        version_spans.append(VersionSpan(policy_version=version, start=start, end=length))
    loss_mask = np.concatenate(mask)
    advantage = np.float32(rng.normal())
    logprobs = np.where(loss_mask, rng.normal(-5.5, 0.5, length), 0.0).astype(np.float32)
    return TrainingSample(
        group_id=f"0/{seed}/0",
        member=member,
        token_ids=np.concatenate(ids).astype(np.int32),
        loss_mask=loss_mask,
        logprobs=logprobs,
        advantages=np.where(loss_mask, advantage, np.float32(0.0)).astype(np.float32),
        image_spans=tuple(image_spans),
        version_spans=tuple(version_spans),
        reward=reward,
    )


def count_totals(samples: Sequence[TrainingSample]) -> BatchTotals:
    """Return the global denominators of a batch."""
    return BatchTotals(
        num_groups=1,
        num_samples=len(samples),
        num_action_tokens=int(sum(sample.loss_mask.sum() for sample in samples)),
    )


def make_shards(parts: Sequence[Sequence[TrainingSample]], *, train_from_version: int = 0) -> list[BatchShard]:
    """Return one shard for each part of a batch."""
    totals = count_totals([sample for part in parts for sample in part])
    return [
        BatchShard(
            lease_id="lease-0",
            rank=rank,
            world_size=len(parts),
            train_from_version=train_from_version,
            samples=tuple(part),
            totals=totals,
        )
        for rank, part in enumerate(parts)
    ]


def as_trajectory(sample: TrainingSample) -> Trajectory:
    """Return the record that a sample could have been cut from."""
    return Trajectory(
        group_id=sample.group_id,
        member=sample.member,
        task_id="t-0",
        token_ids=sample.token_ids,
        loss_mask=sample.loss_mask,
        logprobs=sample.logprobs,
        image_spans=sample.image_spans,
        version_spans=sample.version_spans,
        reward=sample.reward,
    )


def make_group(
    group_id: str, *, digests: Sequence[str], image_token_id: int, version: int = 0, members: int = 3
) -> TrajectoryGroup:
    """Return a finished group whose last member alone was right; the other members see one image less."""
    seed = int(group_id.split("/")[1])
    samples = [
        make_sample(
            member,
            digests=digests if member == members - 1 else digests[1:],
            image_token_id=image_token_id,
            seed=seed,
            version=version,
            reward=float(member == members - 1),
        )
        for member in range(members)
    ]
    task = Task(task_id="t-0", family="zoom", question="?", images=())
    return TrajectoryGroup(
        group_id=group_id, attempt=0, incarnation=0, task=task, trajectories=tuple(as_trajectory(s) for s in samples)
    )
