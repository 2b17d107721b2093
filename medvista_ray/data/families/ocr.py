"""OCR: text that is printed on a real ultrasound frame, asked by its name or by its box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medvista_ray.data.scene import encode_pixels
from medvista_ray.data.us_frames import Frame, FrameString
from medvista_ray.types.messages import Reference, Task
from medvista_ray.types.protocols import TaskRecord

FAMILY = "ocr"
BOX_QUESTION = "What is written in the box {x0}, {y0}, {x1}, {y1} (thousandths of width and height)?"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OcrItem:
    """One string of one frame."""

    frame: Frame
    string: FrameString
    by_box: bool  # asked by its place, else by its name


def list_ocr_items(frames: Sequence[Frame]) -> list[OcrItem]:
    """List every string by its name, then every string that has a box by its box; frames take turns."""
    longest = max(len(frame.text.strings) for frame in frames)
    pairs = [
        (frame, frame.text.strings[place])
        for place in range(longest)
        for frame in frames
        if place < len(frame.text.strings)
    ]
    named = [OcrItem(frame=frame, string=string, by_box=False) for frame, string in pairs]
    return named + [OcrItem(frame=frame, string=string, by_box=True) for frame, string in pairs if string.box]


def make_ocr_record(item: OcrItem, task_id: str) -> TaskRecord:
    """Turn a string into a task and its reference."""
    frame, string = item.frame, item.string
    ref, blobs = encode_pixels(frame.pixels, spacing_mm=frame.spacing_mm, modality="US")
    question, aliases = string.question, tuple(string.aliases)
    if item.by_box:
        assert string.box is not None, "items by box have one"
        x0, y0, x1, y1 = string.box
        across, down = 1000 / ref.width, 1000 / ref.height
        question = BOX_QUESTION.format(
            x0=round(x0 * across), y0=round(y0 * down), x1=round(x1 * across), y1=round(y1 * down)
        )
        aliases = (string.text.replace(" ", ""),)
    regions = [string.box] if string.box else []
    return TaskRecord(
        task=Task(
            task_id=task_id,
            family=FAMILY,
            question=question,
            images=(ref,),
            answer_kind="text",
            metadata={"source": frame.text.entry, "synthetic_insert": False},
        ),
        reference=Reference(
            task_id=task_id,
            answer=string.text,
            aliases=aliases,
            regions=np.array(regions, dtype=np.float32).reshape(-1, 4),
        ),
        blobs=blobs,
    )
