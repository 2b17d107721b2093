"""Structure: plane, modality, or the quadrant of a ring; answerable from the first view, the control without tools."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from medvista_ray.data.scene import FULL_PX, VIEW_PX, Pool, draw_cut, draw_ring, encode_pixels, vary_look
from medvista_ray.data.source_images import SourceImage
from medvista_ray.images.geometry import downscale
from medvista_ray.types.messages import Choice, Reference, Task
from medvista_ray.types.protocols import TaskRecord

FAMILY = "structure"
PLANES = ("axial", "coronal", "sagittal")
MODALITIES = ("MR", "CT", "US")
QUADRANTS = ("upper left", "upper right", "lower left", "lower right")
QUESTIONS = {
    "plane": ("Which plane is this?", PLANES),
    "modality": ("Which modality is this?", MODALITIES),
    "quadrant": ("Which quadrant is the ring in?", QUADRANTS),
}
_SHARES = (("plane", 0.35), ("modality", 0.15), ("quadrant", 0.50))
_EDGE_PX = 27


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StructureScene:
    """One drawn item."""

    pixels: np.ndarray  # uint8 [252, 252, 3]
    aspect: str  # plane, modality or quadrant
    answer: str
    source: str
    spacing_mm: tuple[float, float] | None

    @property
    def view(self) -> np.ndarray:
        """Return the first view: the plain downscale of the image."""
        return downscale(self.pixels, VIEW_PX)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StructurePools:
    """The images of the three questions: planes need volumes, modalities need each of the three."""

    by_plane: dict[str, Pool]
    by_modality: dict[str, Pool]
    any_image: Pool


def make_structure_pools(pool: Pool) -> StructurePools:
    """Sort a pool by answer, so that every answer is drawn equally often; a missing answer is left out."""
    planes: dict[str, Pool] = {}
    for plane in PLANES:
        found = _where(pool, partial(_has_plane, plane=plane))
        volumes = tuple(group for group in found.sources if len(group) > 1) if found is not None else ()
        if volumes:
            planes[plane] = Pool(sources=volumes)
    modalities = {name: _where(pool, partial(_has_modality, modality=name)) for name in MODALITIES}
    return StructurePools(
        by_plane=planes,
        by_modality={name: found for name, found in modalities.items() if found is not None},
        any_image=pool,
    )


def _has_plane(image: SourceImage, *, plane: str) -> bool:
    return image.plane == plane


def _has_modality(image: SourceImage, *, modality: str) -> bool:
    return image.modality == modality


def _where(pool: Pool, keep: Callable[[SourceImage], bool]) -> Pool | None:
    groups = tuple(kept for group in pool.sources if (kept := tuple(image for image in group if keep(image))))
    return Pool(sources=groups) if groups else None


def draw_structure_scene(
    rng: np.random.Generator, pools: StructurePools, *, aspect: str | None = None
) -> StructureScene:
    """Draw an item of a given aspect, or of the usual mixture; answers are equally likely."""
    if aspect is None:
        shares = [(name, share) for name, share in _SHARES if name != "plane" or len(pools.by_plane) > 1]
        shares = [(name, share) for name, share in shares if name != "modality" or len(pools.by_modality) > 1]
        weights = np.array([share for _, share in shares])
        aspect = shares[int(rng.choice(len(shares), p=weights / weights.sum()))][0]
    if aspect == "quadrant":
        return _draw_quadrant(rng, pools.any_image)
    groups = pools.by_plane if aspect == "plane" else pools.by_modality
    answer = sorted(groups)[int(rng.integers(len(groups)))]
    image = groups[answer].draw(rng)
    cut = draw_cut(rng, image, FULL_PX, min_share=0.85 if aspect == "plane" else 0.6, turn=False)
    pixels = vary_look(rng, cut.pixels, augment=False)
    if rng.random() < 0.5:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
    return StructureScene(pixels=pixels, aspect=aspect, answer=answer, source=image.source, spacing_mm=cut.spacing_mm)


def _draw_quadrant(rng: np.random.Generator, pool: Pool) -> StructureScene:
    image = pool.draw(rng)
    cut = draw_cut(rng, image, FULL_PX)
    pixels = vary_look(rng, cut.pixels, augment=pool.augment)
    half = FULL_PX // 2
    row, column = int(rng.integers(2)), int(rng.integers(2))
    center = (
        column * half + int(rng.integers(_EDGE_PX, half - _EDGE_PX + 1)),
        row * half + int(rng.integers(_EDGE_PX, half - _EDGE_PX + 1)),
    )
    draw_ring(rng, pixels, center)
    return StructureScene(
        pixels=pixels,
        aspect="quadrant",
        answer=QUADRANTS[row * 2 + column],
        source=image.source,
        spacing_mm=cut.spacing_mm,
    )


def make_structure_record(scene: StructureScene, task_id: str) -> TaskRecord:
    """Turn a scene into a task and its reference; the modality stays out of the image's facts, it may be the answer."""
    ref, blobs = encode_pixels(scene.pixels, spacing_mm=scene.spacing_mm, modality=None)
    question, answers = QUESTIONS[scene.aspect]
    return TaskRecord(
        task=Task(
            task_id=task_id,
            family=FAMILY,
            question=question,
            images=(ref,),
            choices=tuple(Choice(choice_id=answer, text=answer) for answer in answers),
            metadata={"source": scene.source, "synthetic_insert": scene.aspect == "quadrant"},
        ),
        reference=Reference(task_id=task_id, answer=scene.answer),
        blobs=blobs,
    )
