"""Caliper: the distance between two crosses that a sonographer set; the answer is what the scanner printed.

The printed result is blanked, so it has to be measured; the spacing comes from the DICOM header.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medvista_ray.data.scene import encode_pixels
from medvista_ray.data.us_frames import Caliper, Frame, blank
from medvista_ray.types.messages import Reference, Task
from medvista_ray.types.protocols import TaskRecord

FAMILY = "caliper"
QUESTION = "How far apart are the two crosses of the caliper, in {unit}?"
TOLERANCE = 0.05  # relative: a pixel at each end, and the rounding of what is printed
_UNITS = {"cm": 1.0, "mm": 10.0}
_MARGIN_PX = 110  # of the cut around the crosses
_CROSS_PX = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CaliperItem:
    """One way to ask for one caliper."""

    frame: Frame
    caliper: Caliper
    unit: str
    is_cut: bool  # only the part around the crosses is shown


def list_caliper_items(frames: Sequence[Frame]) -> list[CaliperItem]:
    """List the calipers, each in two units, as a whole frame and as a part of it."""
    return [
        CaliperItem(frame=frame, caliper=frame.text.caliper, unit=unit, is_cut=is_cut)
        for frame in frames
        if frame.text.caliper is not None
        for unit in _UNITS
        for is_cut in (False, True)
    ]


def make_caliper_record(item: CaliperItem, task_id: str) -> TaskRecord:
    """Turn a caliper into a task and its reference."""
    caliper = item.caliper
    pixels = blank(item.frame.pixels, [caliper.result])
    points = np.array(caliper.points)
    if item.is_cut:
        left, top = np.maximum(points.min(axis=0) - _MARGIN_PX, 0)
        right, bottom = points.max(axis=0) + _MARGIN_PX
        pixels, points = np.ascontiguousarray(pixels[top:bottom, left:right]), points - (left, top)
    ref, blobs = encode_pixels(pixels, spacing_mm=item.frame.spacing_mm, modality="US")
    printed = f"{caliper.printed_cm * _UNITS[item.unit]:.3g}"
    crosses = [(x - _CROSS_PX, y - _CROSS_PX, x + _CROSS_PX, y + _CROSS_PX) for x, y in points]
    return TaskRecord(
        task=Task(
            task_id=task_id,
            family=FAMILY,
            question=QUESTION.format(unit=item.unit),
            images=(ref,),
            answer_kind="number",
            unit=item.unit,
            metadata={"source": item.frame.text.entry, "synthetic_insert": False},
        ),
        reference=Reference(
            task_id=task_id, answer=printed, tolerance=TOLERANCE, regions=np.array(crosses, dtype=np.float32)
        ),
        blobs=blobs,
    )
