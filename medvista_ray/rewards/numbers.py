"""Numbers: right within a tolerance, in any unit that measures the same. The whole answer is the number."""

from __future__ import annotations

import math

from medvista_ray.types.messages import Reference, Task
from medvista_ray.types.quantity import convert, parse_number

MILLIMETRES = "mm"  # the unit of a question that names none, as `measure` writes it
_ROUNDING = 1e-9  # relative, of a conversion between units


def is_right_number(answer: str, *, task: Task, reference: Reference) -> bool:
    """Return whether an answer is within the tolerance of the reference, or of one of its aliases."""
    return any(
        _is_close(answer, expected, task=task, reference=reference)
        for expected in (reference.answer, *reference.aliases)
    )


def is_readable_number(answer: str, *, unit: str) -> bool:
    """Return whether an answer is a finite number, and its unit, if it has one, measures what is asked ("" = any)."""
    number = parse_number(answer)
    if number is None or not math.isfinite(number[0]):
        return False
    return not (unit and number[1]) or convert(1.0, number[1], to=unit) is not None


def _is_close(answer: str, expected: str, *, task: Task, reference: Reference) -> bool:
    given, wanted = parse_number(answer), parse_number(expected)
    if given is None or wanted is None:
        return False
    wanted_unit = wanted[1] or task.unit or MILLIMETRES
    value = convert(given[0], given[1] or task.unit or wanted_unit, to=wanted_unit)
    if value is None or not math.isfinite(value):
        return False
    bound = max((reference.tolerance or 0.0) * abs(wanted[0]), reference.absolute_tolerance or 0.0)
    return abs(value - wanted[0]) <= bound + _ROUNDING * abs(wanted[0])
