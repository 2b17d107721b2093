"""The cut of one batch over ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvista_ray.rollout.batching import make_batch_cutter
from medvista_ray.types.messages import Task
from medvista_ray.types.samples import TrainingSample
from medvista_ray.types.trajectories import StopReason, Trajectory, TrajectoryGroup, VersionSpan

TASK = Task(task_id="t", family="zoom", question="?", images=())
cut = make_batch_cutter(normalize_std=True)


def make_trajectory(group_id: str, member: int, *, length: int, reward: float, broken: bool = False) -> Trajectory:
    mask = np.arange(length) >= length // 2
    return Trajectory(
        group_id=group_id,
        member=member,
        task_id="t",
        token_ids=np.arange(length, dtype=np.int32),
        loss_mask=mask,
        logprobs=np.where(mask, np.float32(-0.5), np.float32(0.0)),
        version_spans=(VersionSpan(policy_version=3, start=length // 2, end=length),),
        stop_reason=StopReason.BROKEN if broken else StopReason.ANSWERED,
        reward=reward,
        error="ValueError: x" if broken else None,
    )


def make_group(index: int, lengths: list[int], *, broken: tuple[int, ...] = ()) -> TrajectoryGroup:
    group_id = f"0/{index}/0"
    members = tuple(
        make_trajectory(group_id, member, length=length, reward=float(member % 2), broken=member in broken)
        for member, length in enumerate(lengths)
    )
    return TrajectoryGroup(group_id=group_id, attempt=0, incarnation=0, task=TASK, trajectories=members)


def names(ranks: list[list[TrainingSample]]) -> list[list[tuple[str, int]]]:
    return [[(sample.group_id, sample.member) for sample in rank] for rank in ranks]


def test_one_rank_keeps_the_order_of_the_batch() -> None:
    groups = [make_group(0, [4, 9]), make_group(1, [7, 2])]
    assert names(cut(groups, 1)) == [[("0/0/0", 0), ("0/0/0", 1), ("0/1/0", 0), ("0/1/0", 1)]]


def test_broken_members_are_left_out_of_samples_and_mean() -> None:
    (samples,) = cut([make_group(0, [4, 4, 4, 4], broken=(2,))], 1)  # rewards 0, 1, 1 of the live members
    assert [sample.member for sample in samples] == [0, 1, 3]
    on_mask = [float(sample.advantages[-1]) for sample in samples]
    assert on_mask == pytest.approx([-(2**0.5), 0.5**0.5, 0.5**0.5], rel=1e-6)
    assert all(not sample.advantages[~sample.loss_mask].any() for sample in samples)


def test_fewer_samples_than_ranks_leave_ranks_empty() -> None:
    assert [len(rank) for rank in cut([make_group(0, [4, 4])], 4)] == [1, 1, 0, 0]


def test_ranks_share_a_group_when_that_balances_tokens() -> None:
    ranks = cut([make_group(0, [100, 60, 40])], 2)
    assert names(ranks) == [[("0/0/0", 0)], [("0/0/0", 1), ("0/0/0", 2)]]


def test_a_world_of_no_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="world_size"):
        cut([make_group(0, [4, 4])], 0)


@given(st.lists(st.lists(st.integers(2, 60), min_size=2, max_size=6), min_size=1, max_size=6), st.integers(1, 5))
def test_every_sample_is_dealt_once_and_loads_are_balanced(lengths: list[list[int]], world_size: int) -> None:
    groups = [make_group(index, of_group) for index, of_group in enumerate(lengths)]
    ranks = cut(groups, world_size)
    assert len(ranks) == world_size
    dealt = sorted(name for rank in names(ranks) for name in rank)
    assert dealt == sorted((group.group_id, m.member) for group in groups for m in group.trajectories)
    loads = [sum(len(sample.token_ids) for sample in rank) for rank in ranks]
    assert max(loads) - min(loads) <= max(max(of_group) for of_group in lengths)
    assert names(cut(groups, world_size)) == names(ranks)
