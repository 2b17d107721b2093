"""Insert mask: outline one irregular, soft-edged lesion-like insert in a real image; its exact mask is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medvista_ray.data.families.insert_images import (
    Background,
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

FAMILY = "insert_mask"
QUESTION = "Outline the {tone} lesion."
_RADIUS_PX = (18.0, 38.0)
_SOFT_PX = (3.0, 8.0)  # width of the edge
_WAVES = 4  # of the outline; the k-th has an amplitude of up to 0.22 / k of the radius
_PLACES = 12  # tried in one image
_CLEARANCE = 0.8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LesionScene:
    """One drawn item."""

    pixels: np.ndarray  # uint8 [252, 252, 3]
    mask: np.ndarray  # bool [252, 252]
    tone: Tone
    source: str
    modality: str
    spacing_mm: tuple[float, float] | None


def draw_lesion_scene(rng: np.random.Generator, pool: Pool) -> LesionScene:
    """Draw an item; a place that the insert would not stand out from is drawn again."""
    while True:
        background = draw_background(rng, pool)
        level = draw_level(rng, background.tone)
        for _ in range(_PLACES):
            share = _draw_share(rng)
            if clearance(background, share, level) >= _CLEARANCE:
                return _make_scene(background, share, level)


def _draw_share(rng: np.random.Generator) -> np.ndarray:
    """Draw an irregular blob inside the image: how much of each pixel it covers, float32 [252, 252]."""
    radius, soft = rng.uniform(*_RADIUS_PX), rng.uniform(*_SOFT_PX)
    flat = rng.uniform(0.7, 1.0)  # short axis / long axis
    amplitudes = rng.uniform(0.0, 0.22, _WAVES) / np.arange(1, _WAVES + 1)
    phases = rng.uniform(0.0, 2 * np.pi, _WAVES + 1)
    edge = int(radius * 1.5) + 4
    x, y = rng.integers(edge, FULL_PX - edge, 2)
    rows, columns = np.ogrid[:FULL_PX, :FULL_PX]
    down, across = rows - int(y), columns - int(x)
    angle = np.arctan2(down, across)
    turned = angle - phases[-1]
    outline = radius * flat / np.sqrt((flat * np.cos(turned)) ** 2 + np.sin(turned) ** 2)  # an ellipse
    waves = sum(a * np.cos((k + 2) * angle + p) for k, (a, p) in enumerate(zip(amplitudes, phases, strict=False)))
    share = np.clip((outline * (1.0 + waves) - np.hypot(down, across)) / soft + 0.5, 0.0, 1.0)
    return np.asarray(share * share * (3.0 - 2.0 * share), dtype=np.float32)


def _make_scene(background: Background, share: np.ndarray, level: float) -> LesionScene:
    return LesionScene(
        pixels=to_uint8(blend(background.pixels, share, level)),
        mask=share >= 0.5,
        tone=background.tone,
        source=background.source,
        modality=background.modality,
        spacing_mm=background.spacing_mm,
    )


def make_lesion_record(scene: LesionScene, task_id: str) -> TaskRecord:
    """Turn a scene into a task and its reference."""
    ref, blobs = encode_pixels(scene.pixels, spacing_mm=scene.spacing_mm, modality=scene.modality)
    return TaskRecord(
        task=Task(
            task_id=task_id,
            family=FAMILY,
            question=QUESTION.format(tone=scene.tone),
            images=(ref,),
            answer_kind="mask",
            metadata={"source": scene.source, "synthetic_insert": True},
        ),
        reference=Reference(
            task_id=task_id, answer="", mask=scene.mask, regions=np.array([box_of(scene.mask)], dtype=np.float32)
        ),
        blobs=blobs,
    )
