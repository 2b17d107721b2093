"""Is an answer right? Exact rules per kind of question; an answer that merely contains the label is wrong.

Closed question: the choice id, after strip and casefold. Number: within the reference's relative tolerance, in the
reference's unit. Anything else: equal text after casefold, runs of blanks taken as one.
"""

from __future__ import annotations

from medvista_ray.types.messages import Reference, Task
from medvista_ray.types.quantity import parse_number

MILLIMETRES = "mm"  # the unit a number without one is in, as `measure` writes it


def is_correct(answer: str, *, task: Task, reference: Reference) -> bool:
    """Return whether an answer is right."""
    if task.choices:
        return normalize_choice(answer) == normalize_choice(reference.answer)
    if reference.tolerance is not None:
        return _is_close(answer, reference.answer, reference.tolerance)
    return _normalize_text(answer) == _normalize_text(reference.answer)


def is_valid_answer(answer: str, task: Task) -> bool:
    """Return whether an answer is one that the question allows; needs no reference."""
    if task.choices:
        return normalize_choice(answer) in {normalize_choice(choice.choice_id) for choice in task.choices}
    return bool(answer.strip())


def normalize_choice(text: str) -> str:
    """Return a choice id as it is compared."""
    return text.strip().casefold()


def _is_close(answer: str, expected: str, tolerance: float) -> bool:
    given, wanted = parse_number(answer), parse_number(expected)
    if given is None or wanted is None:
        return False
    if given[1] not in ("", wanted[1] or MILLIMETRES):
        return False
    return abs(given[0] - wanted[0]) <= tolerance * abs(wanted[0])


def _normalize_text(text: str) -> str:
    return " ".join(text.split()).casefold()
