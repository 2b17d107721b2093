"""Cut one batch of groups over the ranks of a learner. Knows records; not leases, tensors or packing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from medvista_ray.rollout.advantage import group_advantages
from medvista_ray.types.samples import TrainingSample, make_training_sample
from medvista_ray.types.trajectories import TrajectoryGroup

BatchCutter = Callable[[Sequence[TrajectoryGroup], int], list[list[TrainingSample]]]


def make_batch_cutter(*, normalize_std: bool) -> BatchCutter:
    """Return `cut(groups, world_size)`: the samples of each rank, with their advantages.

    Only live members become samples. Ranks may share a group, and some get no sample when there are fewer than ranks.
    The same groups in the same order are always cut the same way.
    """

    def cut(groups: Sequence[TrajectoryGroup], world_size: int) -> list[list[TrainingSample]]:
        samples = [sample for group in groups for sample in make_group_samples(group, normalize_std=normalize_std)]
        return deal_samples(samples, world_size)

    return cut


def make_group_samples(group: TrajectoryGroup, *, normalize_std: bool) -> list[TrainingSample]:
    """Turn the live members of one group into samples; broken members have no part in the mean."""
    if not group.live:
        return []
    advantages = group_advantages([member.reward for member in group.live], normalize_std=normalize_std)
    return [make_training_sample(member, advantage) for member, advantage in zip(group.live, advantages, strict=True)]


def deal_samples(samples: Sequence[TrainingSample], world_size: int) -> list[list[TrainingSample]]:
    """Deal samples so that ranks hold about as many tokens: longest first, each to the rank with the fewest.

    Within a rank the samples keep the order of the batch.
    """
    if world_size < 1:
        raise ValueError(f"world_size must be >= 1, got {world_size}")
    loads = [0] * world_size
    dealt: list[list[int]] = [[] for _ in range(world_size)]
    longest_first = sorted(range(len(samples)), key=lambda index: (-len(samples[index].token_ids), index))
    for index in longest_first:
        rank = min(range(world_size), key=lambda rank: (loads[rank], rank))
        loads[rank] += len(samples[index].token_ids)
        dealt[rank].append(index)
    return [[samples[index] for index in sorted(indices)] for indices in dealt]
