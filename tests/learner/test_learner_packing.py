"""Microbatch plans."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvista_ray.learner.packing import minibatch_indices, pad_plan, padding_share, plan_microbatches, split_plan

sequence_lengths = st.lists(st.integers(1, 300), max_size=40)


def test_a_plan_by_hand() -> None:
    assert plan_microbatches([3, 10, 4, 10, 9], max_tokens=20) == [(1, 3), (4, 2), (0,)]


@given(sequence_lengths, st.integers(1, 600))
def test_each_sequence_is_planned_once_within_the_budget(lengths: list[int], max_tokens: int) -> None:
    plan = plan_microbatches(lengths, max_tokens=max_tokens)
    assert sorted(index for rows in plan for index in rows) == list(range(len(lengths)))
    for rows in plan:
        assert rows
        longest = max(lengths[index] for index in rows)
        assert len(rows) * longest <= max_tokens or len(rows) == 1
    assert plan == plan_microbatches(lengths, max_tokens=max_tokens)


@given(sequence_lengths, st.integers(300, 600))
def test_no_two_neighbours_of_a_plan_fit_together(lengths: list[int], max_tokens: int) -> None:
    plan = plan_microbatches(lengths, max_tokens=max_tokens)
    for rows, following in pairwise(plan):
        assert (len(rows) + 1) * lengths[rows[0]] > max_tokens
        assert lengths[following[0]] <= lengths[rows[-1]]


def test_padding_with_dummies() -> None:
    assert pad_plan([(1, 0)], 3) == [(1, 0), (), ()]
    assert pad_plan([], 1) == [()]
    with pytest.raises(ValueError, match="do not fit"):
        pad_plan([(0,), (1,)], 1)


@given(sequence_lengths.filter(bool), st.integers(1, 6))
def test_a_split_plan_keeps_the_order_and_has_as_many_parts_as_it_can(lengths: list[int], wanted: int) -> None:
    plan = plan_microbatches(lengths, max_tokens=1000)
    parts = split_plan(plan, wanted)
    assert [index for rows in parts for index in rows] == [index for rows in plan for index in rows]
    assert all(parts)
    assert len(parts) >= min(wanted, len(lengths))


@given(st.integers(0, 50), st.integers(1, 7))
def test_minibatches_partition_the_samples(num_samples: int, minibatches: int) -> None:
    parts = [minibatch_indices(num_samples, minibatches=minibatches, minibatch_index=i) for i in range(minibatches)]
    assert sorted(index for part in parts for index in part) == list(range(num_samples))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_padding_share_counts_what_carries_nothing() -> None:
    assert padding_share([10, 5], [(0, 1), ()]) == 0.25
    assert padding_share([], [()]) == 0.0
