"""Names of rubrics."""

from __future__ import annotations

from medvista_ray.rewards.rubric import Rubric
from medvista_ray.rewards.vista import VistaRubric


def make_rubric(spec: str) -> Rubric:
    """Make a rubric by its name."""
    return VistaRubric()
