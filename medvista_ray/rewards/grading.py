"""Is an answer right? One exact rule for each kind of answer; an answer that merely contains the label is wrong.

choice: the id or the text of one choice, yes or no without choices (`choices.py`). text: equal after normalising
(`text.py`). number: within the tolerance after conversion of units (`numbers.py`). boxes: a box score above 0.5
(`boxes.py`). list: the same items in the same order (`lists.py`). A mask is no text: rubrics grade it (`masks.py`).
"""

from __future__ import annotations

from medvista_ray.rewards.boxes import MIN_RIGHT_IOU, grade_boxes, parse_boxes
from medvista_ray.rewards.choices import find_choice
from medvista_ray.rewards.lists import is_right_list, parse_list
from medvista_ray.rewards.numbers import is_readable_number, is_right_number
from medvista_ray.rewards.text import is_same_text
from medvista_ray.types.messages import Reference, Task

MAX_ANSWER_CHARS = 16_384  # a longer one is not read, and not right


def is_correct(answer: str, *, task: Task, reference: Reference) -> bool:
    """Return whether an answer is right; never for a mask, which is not in the answer."""
    if len(answer) > MAX_ANSWER_CHARS:
        return False
    match task.answers_with:
        case "choice":
            named = find_choice(answer, task.choices)
            return named is not None and named == find_choice(reference.answer, task.choices)
        case "number":
            return is_right_number(answer, task=task, reference=reference)
        case "boxes":
            return grade_boxes(answer, task=task, reference=reference) > MIN_RIGHT_IOU
        case "list":
            return is_right_list(answer, reference)
        case "mask":
            return False
    if task.answer_kind is None and _has_tolerance(reference):
        return is_right_number(answer, task=task, reference=reference)
    return is_same_text(answer, (reference.answer, *reference.aliases))


def is_valid_answer(answer: str, task: Task) -> bool:
    """Return whether an answer is one that the question allows; needs no reference. Any text may stand by a mask."""
    if len(answer) > MAX_ANSWER_CHARS:
        return False
    match task.answers_with:
        case "choice":
            return find_choice(answer, task.choices) is not None
        case "number":
            return is_readable_number(answer, unit=task.unit)
        case "boxes":
            return parse_boxes(answer) is not None
        case "list":
            return bool(parse_list(answer))
        case "mask":
            return True
    return bool(answer.strip())


def _has_tolerance(reference: Reference) -> bool:
    return reference.tolerance is not None or reference.absolute_tolerance is not None
