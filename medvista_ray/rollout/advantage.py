"""Credit of the members of one group. Pure numbers; knows no records."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev


def group_advantages(rewards: Sequence[float], *, normalize_std: bool) -> list[float]:
    """Centre the rewards of one group; equal rewards give exact zeros."""
    if max(rewards) == min(rewards):
        return [0.0] * len(rewards)
    mean, scale = fmean(rewards), pstdev(rewards) if normalize_std else 1.0
    return [(reward - mean) / scale for reward in rewards]
