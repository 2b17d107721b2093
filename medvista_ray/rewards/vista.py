"""The three-level rubric of VISTA-Gym (arXiv 2511.19773): repetition first, then format, then correctness.

As in VISTA-Gym: the levels, their values, their priority, and no bonus for calling tools. Our choices: the measure of
repetition (`repetition.py`), and that an episode without an answer is not well-formed, since the protocol is rounds of
calls *and then* an answer. So calling tools for ever pays less than any well-formed answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from medvista_ray.rewards.grading import is_correct
from medvista_ray.rewards.repetition import compute_loop_excess
from medvista_ray.rewards.rubric import FinishedEpisode, Score, make_score
from medvista_ray.types.messages import Reference, Task

# (excess characters from which a level holds, its penalty), worst first
REPETITION_LEVELS = ((800, -3.0), (200, -2.0), (50, -1.5))
WELL_FORMED, NOT_WELL_FORMED = 1.0, -1.0


def compute_repetition(text: str) -> float:
    """Return 0.0, or -1.5, -2.0, -3.0 for moderate, severe, extreme repetition."""
    excess = compute_loop_excess(text)
    return next((penalty for bound, penalty in REPETITION_LEVELS if excess >= bound), 0.0)


def compute_episode_repetition(episode: FinishedEpisode) -> float:
    """Return the penalty for repetition over the text of all actions."""
    return compute_repetition(" ".join(action.text for action in episode.actions))


def is_complete(episode: FinishedEpisode) -> bool:
    """Return whether every action is well-formed and the last one is an answer."""
    return episode.answer is not None and all(action.is_well_formed for action in episode.actions)


def compute_format(episode: FinishedEpisode) -> float:
    """Return +1.0 for a complete episode, else -1.0."""
    return WELL_FORMED if is_complete(episode) else NOT_WELL_FORMED


@dataclass(frozen=True, slots=True, kw_only=True)
class VistaRubric:
    """R_rep if it is not zero, else R_format + R_correct: one of 2, 1, -1, -1.5, -2, -3."""

    def score(self, episode: FinishedEpisode, *, task: Task, reference: Reference) -> Score:
        """Score a finished episode; `breakdown` has `repetition`, `format` and `correct`."""
        if repetition := compute_episode_repetition(episode):
            return make_score(repetition=repetition, format=0.0, correct=0.0)
        form = compute_format(episode)
        right = (
            form == WELL_FORMED
            and episode.answer is not None
            and is_correct(episode.answer, task=task, reference=reference)
        )
        return make_score(repetition=0.0, format=form, correct=float(right))
