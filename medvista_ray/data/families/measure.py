"""Measure: the distance in millimetres between two marks whose pixel positions the question gives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from medvista_ray.data.scene import FULL_PX, Pool, draw_cut, encode_pixels, vary_look
from medvista_ray.types.messages import Reference, Task
from medvista_ray.types.protocols import TaskRecord

FAMILY = "measure"
QUESTION = "Distance in mm from {x0},{y0} to {x1},{y1}?"
TOLERANCE = 0.05  # relative
_EDGE_PX = 10
_MIN_DISTANCE_PX = 60.0
_MARK_COLOUR = (255, 255, 0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeasureScene:
    """One drawn item."""

    pixels: np.ndarray  # uint8 [252, 252, 3]
    points: tuple[tuple[int, int], tuple[int, int]]  # x, y in pixels of the item
    spacing_mm: tuple[float, float]  # (row, column)
    source: str
    modality: str

    @property
    def distance_mm(self) -> float:
        """Return the distance between the marks."""
        (x0, y0), (x1, y1) = self.points
        return math.hypot((x1 - x0) * self.spacing_mm[1], (y1 - y0) * self.spacing_mm[0])


def draw_measure_scene(rng: np.random.Generator, pool: Pool) -> MeasureScene:
    """Draw an item with two marks at least 60 px apart."""
    image = pool.draw(rng)
    cut = draw_cut(rng, image, FULL_PX)
    assert cut.spacing_mm is not None, "the pool of this family holds images with a spacing only"
    pixels = vary_look(rng, cut.pixels, augment=False)
    while True:
        x0, y0, x1, y1 = (int(value) for value in rng.integers(_EDGE_PX, FULL_PX - _EDGE_PX, 4))
        if math.hypot(x1 - x0, y1 - y0) >= _MIN_DISTANCE_PX:
            break
    for x, y in ((x0, y0), (x1, y1)):
        pixels[y - 4 : y + 5, x - 1 : x + 2] = _MARK_COLOUR
        pixels[y - 1 : y + 2, x - 4 : x + 5] = _MARK_COLOUR
    return MeasureScene(
        pixels=pixels,
        points=((x0, y0), (x1, y1)),
        spacing_mm=cut.spacing_mm,
        source=image.source,
        modality=image.modality,
    )


def make_measure_record(scene: MeasureScene, task_id: str) -> TaskRecord:
    """Turn a scene into a task and its reference."""
    ref, blobs = encode_pixels(scene.pixels, spacing_mm=scene.spacing_mm, modality=scene.modality)
    (x0, y0), (x1, y1) = scene.points
    return TaskRecord(
        task=Task(
            task_id=task_id,
            family=FAMILY,
            question=QUESTION.format(x0=x0, y0=y0, x1=x1, y1=y1),
            images=(ref,),
            metadata={"source": scene.source, "synthetic_insert": True},
        ),
        reference=Reference(task_id=task_id, answer=f"{scene.distance_mm:.1f}", tolerance=TOLERANCE),
        blobs=blobs,
    )
