"""The contract of a rubric: which facts of an episode it sees, and what it gives back. Knows no env and no tokens.

Evaluation counts an episode as right when the part `correct` of its breakdown is > 0: a rubric has that part, positive
exactly when the episode is right, and pays what is nearly right under another name.
"""

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
    answer: str | None = None  # its text, or the name of the action that ended it; None when it ended without either
    cited_boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))  # [K, 4], pixels of image 0
    masks: tuple[np.ndarray, ...] = ()  # bool [H, W] of image 0, the mask after each action that gave one


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A reward and what it is made of."""

    reward: float
    breakdown: Mapping[str, float] = field(default_factory=dict)  # by name; sums to `reward`


def make_score(**parts: float) -> Score:
    """Add up the parts of a reward."""
    return Score(reward=sum(parts.values()), breakdown=parts)


class Rubric(Protocol):
    """Turns a finished episode into a reward; pure, so that the same episode always earns the same."""

    def score(self, episode: FinishedEpisode, *, task: Task, reference: Reference) -> Score:
        """Score a finished episode."""
