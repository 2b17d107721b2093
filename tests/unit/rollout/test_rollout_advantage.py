"""Advantages of one group."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvista_ray.rollout.advantage import group_advantages

rewards_of_a_group = st.lists(st.floats(-10, 10, allow_nan=False), min_size=2, max_size=16)


@pytest.mark.parametrize("normalize_std", [True, False])
@pytest.mark.parametrize("reward", [0.0, 0.1, 1 / 3, -2.7])
def test_equal_rewards_give_exact_zeros(reward: float, normalize_std: bool) -> None:
    assert group_advantages([reward] * 7, normalize_std=normalize_std) == [0.0] * 7


def test_two_members_by_hand() -> None:
    assert group_advantages([2.0, 1.0], normalize_std=True) == [1.0, -1.0]
    assert group_advantages([2.0, 1.0], normalize_std=False) == [0.5, -0.5]


def test_four_members_by_hand() -> None:
    # mean 0.25, population variance 3/16
    expected = [0.75 / math.sqrt(3 / 16)] + [-0.25 / math.sqrt(3 / 16)] * 3
    assert group_advantages([1.0, 0.0, 0.0, 0.0], normalize_std=True) == pytest.approx(expected, rel=1e-12)


@given(rewards_of_a_group)
def test_advantages_are_centred_and_keep_the_order(rewards: list[float]) -> None:
    advantages = group_advantages(rewards, normalize_std=False)
    assert sum(advantages) == pytest.approx(0.0, abs=1e-9)
    assert [a for _, a in sorted(zip(rewards, advantages, strict=True))] == sorted(advantages)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=16))
def test_normalised_advantages_have_unit_variance(rewards: list[int]) -> None:
    advantages = group_advantages([float(reward) for reward in rewards], normalize_std=True)
    expected = 0.0 if len(set(rewards)) == 1 else 1.0
    assert sum(a * a for a in advantages) / len(advantages) == pytest.approx(expected, rel=1e-9)
