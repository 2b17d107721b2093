"""Numbers: right within a tolerance, in any unit that measures the same. The whole answer is the number.

A bare number is in the unit that is asked. Where a unit is asked that `quantity.py` does not know ("nuclei"), it has to
be that word, in the singular or the plural. Where none is asked it is a count: any word may stand behind the number
("12 nuclei", "12 lesions"), but no unit of measure ("12 mm") and none that makes another number of it ("12 million").
"""

from __future__ import annotations

import math

from medvista_ray.types.messages import Reference, Task
from medvista_ray.types.quantity import convert, is_known_unit, normalize_unit, parse_number

MILLIMETRES = "mm"  # of a task with neither kind nor unit, as `measure` of the demo set writes it
_MULTIPLES = frozenset(("k", "hundred", "thousand", "million", "billion", "dozen"))
_MULTIPLES_HAN = tuple("十百千万亿萬億")
_ROUNDING = 1e-9  # relative, of a conversion between units


def is_right_number(answer: str, *, task: Task, reference: Reference) -> bool:
    """Return whether an answer is within the tolerance of the reference, or of one of its aliases."""
    return any(
        _is_close(answer, expected, task=task, reference=reference)
        for expected in (reference.answer, *reference.aliases)
    )


def is_readable_number(answer: str, *, unit: str) -> bool:
    """Return whether an answer is a finite number, and its unit, if it has one, is what may be asked ("" = any)."""
    number = parse_number(answer)
    if number is None or not math.isfinite(number[0]):
        return False
    return not (unit and number[1]) or _convert(1.0, number[1], to=unit) is not None


def _is_close(answer: str, expected: str, *, task: Task, reference: Reference) -> bool:
    given, wanted = parse_number(answer), parse_number(expected)
    if given is None or wanted is None or not math.isfinite(wanted[0]):
        return False
    wanted_unit = wanted[1] or task.unit or (MILLIMETRES if task.answer_kind is None else "")
    value = _convert(given[0], given[1] or task.unit or wanted_unit, to=wanted_unit)
    if value is None or not math.isfinite(value):
        return False
    bound = max((reference.tolerance or 0.0) * abs(wanted[0]), reference.absolute_tolerance or 0.0)
    return abs(value - wanted[0]) <= bound + _ROUNDING * abs(wanted[0])


def _convert(value: float, unit: str, *, to: str) -> float | None:
    """Return `value` in the unit that is asked, "" for a count; None when it is in something else."""
    if not to:
        return value if _is_counted(unit) else None
    if not is_known_unit(to) and _drop_plural(unit) == _drop_plural(to):
        return value
    return convert(value, unit, to=to)


def _is_counted(word: str) -> bool:
    is_multiple = word.removesuffix("s") in _MULTIPLES or word.startswith(_MULTIPLES_HAN)
    return not is_multiple and not is_known_unit(word)


def _drop_plural(word: str) -> str:
    return normalize_unit(word).removesuffix("s")
