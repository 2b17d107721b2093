"""The contract of a rubric: which facts of an episode it sees, and what it gives back. Knows no env and no tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from medvista_ray.types.messages import Reference, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredAction:
    """One action as a rubric sees it."""

    text: str
    is_well_formed: bool  # the right tags, in order, closed, not nested
    used_tool: bool = False  # it called a tool, and the call worked


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FinishedEpisode:
    """What an episode left behind for its rubric."""

    actions: tuple[ScoredAction, ...]
    answer: str | None = None  # text of the answer; None when the episode ended without one
    cited_boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))  # [K, 4], pixels of image 0
    masks: tuple[np.ndarray, ...] = ()  # bool [H, W] of image 0, the mask after each action that changed it


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A reward and what it is made of."""

    reward: float
    breakdown: Mapping[str, float] = field(default_factory=dict)  # by name; sums to `reward`


class Rubric(Protocol):
    """Turns a finished episode into a reward; pure, so that the same episode always earns the same."""

    def score(self, episode: FinishedEpisode, *, task: Task, reference: Reference) -> Score:
        """Score a finished episode."""
