"""What holds in every family of the embedded set, installed or fetched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from medvista_ray.types.protocols import TaskRecord

_MAX_MODULUS = 16
_MIN_CLASS = 3  # items of one residue: with fewer, a guess by residue knows the items themselves


def best_by_residue(answers: Sequence[object]) -> float:
    """Return how often the best guess from index mod k alone is right, for the best k up to 16."""
    best = 0.0
    for modulus in range(2, min(_MAX_MODULUS, len(answers) // _MIN_CLASS) + 1):
        right = sum(max(Counter(answers[start::modulus]).values()) for start in range(modulus))
        best = max(best, right / len(answers))
    return best


def assert_number_tells_nothing(records: Sequence[TaskRecord]) -> None:
    """Fail where the closed answers of a family in its own order follow from index mod k, k <= 16."""
    closed = [record.reference.answer if record.task.choices else None for record in records]
    if any(answer is not None for answer in closed):
        assert best_by_residue(closed) < 0.9, records[0].task.family
