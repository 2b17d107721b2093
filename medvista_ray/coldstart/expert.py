"""A scripted expert with a wrong habit, for our families. It sees references: its output is training data only.

Zoom: it looks at the right region in `right_share` of the episodes, else always at the centre. Window: the right preset
in that share, else always the default one. A wrong look ends in a guess, but for `second_look_share` of them, after
which it looks at the right place: that one may look again is part of the protocol. So fine-tuning teaches the protocol
and a bad habit, and reinforcement learning has something real to fix. Measure and structure it does right. Boxes and
masks: the box of the object in `right_share` of the episodes, else the middle of the image.
"""

from __future__ import annotations

import json
import re

import numpy as np

from medvista_ray.data.families import measure, structure, window, zoom
from medvista_ray.errors import DataError
from medvista_ray.images.windowing import DEFAULT_PRESET
from medvista_ray.types.messages import Reference, Task

MIDDLE = (333, 333, 667, 667)
GRID_EDGES = (0, 333, 667, 1000)
TOO_SMALL, NOT_VISIBLE, VISIBLE = "Too small.", "Not visible.", "I see it."
CLEAR, MEASURE, NO_TOOL = "Clear enough.", "Measure it.", "Cannot tell."
THOUGHTS = (TOO_SMALL, NOT_VISIBLE, VISIBLE, CLEAR, MEASURE, NO_TOOL)
_KIND = re.compile(r"on the (\w+)-dense insert")
_Look = tuple[str, dict[str, object]]  # name and arguments of a call
_POINTS = re.compile(r"from (\d+),(\d+) to (\d+),(\d+)\?")


def grid_box(cell: int) -> list[int]:
    """Return one ninth of an image as a box in 0-1000 coordinates, cells in reading order."""
    row, column = divmod(cell, 3)
    return [GRID_EDGES[column], GRID_EDGES[row], GRID_EDGES[column + 1], GRID_EDGES[row + 1]]


def write_call(thought: str, name: str, arguments: dict[str, object]) -> str:
    """Write an action that calls a tool, JSON without spaces."""
    call = json.dumps({"name": name, "arguments": arguments}, separators=(",", ":"))
    return f"<think>{thought}</think><tool_call>{call}</tool_call>"


def write_answer(thought: str, answer: str) -> str:
    """Write an action that answers."""
    return f"<think>{thought}</think><answer>{answer}</answer>"


def plan_answer_only(task: Task, reference: Reference) -> tuple[str, ...]:
    """Plan the right answer without a tool; for what cannot be seen, that teaches nothing but the format."""
    thought = NO_TOOL if task.family in (zoom.FAMILY, window.FAMILY, measure.FAMILY) else CLEAR
    return (write_answer(thought, _write_reference(task, reference)),)


def _write_reference(task: Task, reference: Reference) -> str:
    """Write the right answer in the form that its kind asks for; `DataError` where no text can be one."""
    if task.answers_with == "boxes":
        return json.dumps(_in_thousandths(_outlines(reference), task))
    if task.answers_with == "list":
        return ", ".join(reference.items)
    if task.answers_with == "mask":
        raise DataError("coldstart: a mask is no answer in words: offer tools (env.offer_tools=true)")
    return reference.answer


def plan_expert(
    task: Task, reference: Reference, *, right_share: float, second_look_share: float, rng: np.random.Generator
) -> tuple[str, ...]:
    """Plan all actions of one episode; `DataError` for a family that the expert does not know."""
    if task.family == structure.FAMILY:
        return plan_answer_only(task, reference)
    if task.family == measure.FAMILY:
        return _plan_measure(task, reference)
    if task.answers_with in ("boxes", "mask"):
        return _plan_outline(task, reference, is_right=bool(rng.random() < right_share))
    right, habitual = _find_looks(task, reference)
    is_right = bool(rng.random() < right_share)
    guess = task.choices[int(rng.integers(len(task.choices)))].choice_id
    sees_it = is_right or right == habitual
    calls = [right if is_right else habitual]
    if not sees_it and rng.random() < second_look_share:
        calls.append(right)
        sees_it = True
    thoughts = (TOO_SMALL if task.family == zoom.FAMILY else NOT_VISIBLE, NOT_VISIBLE)
    actions = [write_call(thought, *call) for thought, call in zip(thoughts, calls, strict=False)]
    return (*actions, _conclude(reference, guess, sees_it=sees_it))


def _find_looks(task: Task, reference: Reference) -> tuple[_Look, _Look]:
    """Return the right look and the habitual one."""
    if task.family == zoom.FAMILY:
        return ("zoom", {"bbox": grid_box(_cell_of(task, reference))}), ("zoom", {"bbox": grid_box(4)})
    if task.family == window.FAMILY:
        found = _KIND.search(task.question)
        if found is None:
            raise DataError(f"the expert cannot read the kind of insert in {task.question!r}")
        return ("window_level", {"preset": found.group(1)}), ("window_level", {"preset": DEFAULT_PRESET})
    raise DataError(
        f"coldstart.source: the scripted expert knows no family {task.family!r}; "
        "give coldstart.expert=pkg.module:function, or a recording"
    )


def _plan_outline(task: Task, reference: Reference, *, is_right: bool) -> tuple[str, ...]:
    """Plan an episode of `GroundingEnv` or `InteractiveSegmentationEnv`."""
    boxes = _in_thousandths(_outlines(reference), task) if is_right else [list(MIDDLE)]
    thought = VISIBLE if is_right else NO_TOOL
    if task.answers_with == "boxes":
        return (write_answer(thought, json.dumps(boxes)),)
    return write_call(thought, "add_bbox", {"bbox": boxes[0]}), write_call(CLEAR, "stop_action", {})


def _outlines(reference: Reference) -> list[list[float]]:
    """Return the boxes to find in pixels, or the one around the mask."""
    if reference.mask is None:
        return [[float(side) for side in box] for box in reference.boxes]
    rows, columns = np.flatnonzero(reference.mask.any(axis=1)), np.flatnonzero(reference.mask.any(axis=0))
    return [[float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]]


def _in_thousandths(boxes: list[list[float]], task: Task) -> list[list[int]]:
    sides = (task.images[0].width, task.images[0].height) * 2
    return [[round(value * 1000 / side) for value, side in zip(box, sides, strict=True)] for box in boxes]


def _conclude(reference: Reference, guess: str, *, sees_it: bool) -> str:
    return write_answer(VISIBLE, reference.answer) if sees_it else write_answer(NOT_VISIBLE, guess)


def _cell_of(task: Task, reference: Reference) -> int:
    x0, y0, x1, y1 = (float(value) for value in reference.boxes[0])
    image = task.images[0]
    column = int((x0 + x1) / 2 * 3 / image.width)
    row = int((y0 + y1) / 2 * 3 / image.height)
    return row * 3 + column


def _plan_measure(task: Task, reference: Reference) -> tuple[str, ...]:
    found = _POINTS.search(task.question)
    if found is None:
        raise DataError(f"the expert cannot read the points in {task.question!r}")
    x0, y0, x1, y1 = (int(value) for value in found.groups())
    call = write_call(MEASURE, "measure", {"points": [[x0, y0], [x1, y1]], "unit": "pixels"})
    return call, write_answer(CLEAR, reference.answer)
