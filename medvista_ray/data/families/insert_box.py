"""Insert box: find every insert of one shape among others in a real image; their exact boxes are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medvista_ray.data.families.insert_images import (
    Tone,
    blend,
    box_of,
    clearance,
    draw_background,
    draw_level,
    to_uint8,
)
from medvista_ray.data.scene import FULL_PX, Pool, encode_pixels
from medvista_ray.types.messages import Reference, Task
from medvista_ray.types.protocols import TaskRecord

FAMILY = "insert_box"
QUESTION = "Give a box around every {tone} {shape}."  # the same for one and for three
SHAPES = ("disc", "square", "triangle", "cross")
_HALF_PX = (15.0, 26.0)  # half the side of an insert
_GAP_PX = 6
_PLACES = 60  # tried in one image
_CLEARANCE = 0.6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShapesScene:
    """One drawn item."""

    pixels: np.ndarray  # uint8 [252, 252, 3]
    shape: str  # that is asked for
    boxes: tuple[tuple[int, int, int, int], ...]  # x0 y0 x1 y1 of the inserts of that shape
    others: tuple[tuple[int, int, int, int], ...]  # of the other inserts
    tone: Tone
    source: str
    modality: str
    spacing_mm: tuple[float, float] | None


def draw_shapes_scene(rng: np.random.Generator, pool: Pool) -> ShapesScene:
    """Draw an item: one to three inserts of the shape that is asked for, one or two of other shapes."""
    while True:
        background = draw_background(rng, pool)
        order = [SHAPES[int(index)] for index in rng.permutation(len(SHAPES))]
        num_wanted, num_others = int(rng.integers(1, 4)), int(rng.integers(1, 3))
        wanted = [order[0]] * num_wanted + order[1 : 1 + num_others]
        level = draw_level(rng, background.tone)
        pixels, boxes = background.pixels, list[tuple[int, int, int, int]]()
        for _ in range(_PLACES):
            share = _draw_share(rng, wanted[len(boxes)])
            box = box_of(share >= 0.5)
            if any(_touch(box, other) for other in boxes) or clearance(background, share, level) < _CLEARANCE:
                continue
            pixels = blend(pixels, share, level)
            boxes.append(box)
            if len(boxes) == len(wanted):
                return ShapesScene(
                    pixels=to_uint8(pixels),
                    shape=order[0],
                    boxes=tuple(boxes[:num_wanted]),
                    others=tuple(boxes[num_wanted:]),
                    tone=background.tone,
                    source=background.source,
                    modality=background.modality,
                    spacing_mm=background.spacing_mm,
                )


def _draw_share(rng: np.random.Generator, shape: str) -> np.ndarray:
    """Draw a shape inside the image: how much of each pixel it covers, float32 [252, 252]."""
    half = rng.uniform(*_HALF_PX)
    edge = int(half) + 4
    x, y = (float(value) for value in rng.integers(edge, FULL_PX - edge, 2))
    rows, columns = np.ogrid[:FULL_PX, :FULL_PX]
    down, across = rows + 0.5 - y, columns + 0.5 - x
    if shape == "disc":
        depth = half - np.hypot(down, across)
    elif shape == "square":
        depth = half - np.maximum(np.abs(down), np.abs(across))
    elif shape == "triangle":  # the tip up; its sides are steep by 2 : 1
        depth = np.minimum(half - down, (down + half - 2.0 * np.abs(across)) / np.sqrt(5.0))
    else:
        arm = half * 0.36
        upright = np.minimum(half - np.abs(down), arm - np.abs(across))
        depth = np.maximum(upright, np.minimum(half - np.abs(across), arm - np.abs(down)))
    return np.asarray(np.clip(depth + 0.5, 0.0, 1.0), dtype=np.float32)


def _touch(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    apart_x = one[2] + _GAP_PX <= other[0] or other[2] + _GAP_PX <= one[0]
    return not (apart_x or one[3] + _GAP_PX <= other[1] or other[3] + _GAP_PX <= one[1])


def make_shapes_record(scene: ShapesScene, task_id: str) -> TaskRecord:
    """Turn a scene into a task and its reference."""
    ref, blobs = encode_pixels(scene.pixels, spacing_mm=scene.spacing_mm, modality=scene.modality)
    boxes = np.array(scene.boxes, dtype=np.float32)
    return TaskRecord(
        task=Task(
            task_id=task_id,
            family=FAMILY,
            question=QUESTION.format(tone=scene.tone, shape=scene.shape),
            images=(ref,),
            answer_kind="boxes",
            metadata={"source": scene.source, "synthetic_insert": True},
        ),
        reference=Reference(task_id=task_id, answer="", boxes=boxes, regions=boxes),
        blobs=blobs,
    )
