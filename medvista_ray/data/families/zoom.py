"""Zoom: a small letter at full resolution; the first view shows where (a ring), not what.

The letter is zero-mean texture inside the pixel blocks that the plain downscale averages, so the first views of all
four answers are the same array, and a crop at full resolution shows it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from medvista_ray.data.letters import BLOCK_PX, LETTERS, PATCH_PX, texture_patch
from medvista_ray.data.scene import (
    FULL_PX,
    VIEW_PX,
    Pool,
    draw_cut,
    draw_ring,
    encode_pixels,
    vary_look,
)
from medvista_ray.images.geometry import downscale
from medvista_ray.types.messages import Choice, Reference, Task
from medvista_ray.types.protocols import TaskRecord

FAMILY = "zoom"
QUESTION = "Which letter is in the ring?"
CHOICES = tuple(Choice(choice_id=letter, text=letter) for letter in LETTERS)
_EDGE_PX = 19  # the letter stays this far from the borders of its third of the image


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ZoomScene:
    """One drawn item."""

    pixels: np.ndarray  # uint8 [252, 252, 3]
    letter: str
    center: tuple[int, int]  # x, y of the ring, source pixels
    source: str
    modality: str
    spacing_mm: tuple[float, float] | None

    @property
    def cell(self) -> int:
        """Return the ninth of the image that holds the ring, 0 to 8 in reading order."""
        third = FULL_PX // 3
        return self.center[1] // third * 3 + self.center[0] // third

    @property
    def view(self) -> np.ndarray:
        """Return the first view: the plain downscale of the image."""
        return downscale(self.pixels, VIEW_PX)


def draw_zoom_scene(rng: np.random.Generator, pool: Pool) -> ZoomScene:
    """Draw an item; the blocks of its letter have the mean of the grey around it, so every letter has the same view."""
    image = pool.draw(rng)
    cut = draw_cut(rng, image, FULL_PX)
    pixels = vary_look(rng, cut.pixels, augment=pool.augment)
    third = FULL_PX // 3
    row, column = int(rng.integers(3)), int(rng.integers(3))
    center = (
        column * third + int(rng.integers(_EDGE_PX, third - _EDGE_PX + 1)),
        row * third + int(rng.integers(_EDGE_PX, third - _EDGE_PX + 1)),
    )
    draw_ring(rng, pixels, center)
    letter = LETTERS[int(rng.integers(len(LETTERS)))]
    _write_letter(pixels, center, letter)
    return ZoomScene(
        pixels=pixels,
        letter=letter,
        center=center,
        source=image.source,
        modality=image.modality,
        spacing_mm=cut.spacing_mm,
    )


def _patch_corner(center: tuple[int, int]) -> tuple[int, int]:
    """Return (x, y) of the patch around a ring, on the grid of blocks that the view averages."""
    x, y = (min(max((value - PATCH_PX // 2 + 2) // BLOCK_PX * BLOCK_PX, 0), FULL_PX - PATCH_PX) for value in center)
    return x, y


def _write_letter(pixels: np.ndarray, center: tuple[int, int], letter: str) -> None:
    left, top = _patch_corner(center)
    pixels[top : top + PATCH_PX, left : left + PATCH_PX] = texture_patch(letter)[..., None]


def with_letter(scene: ZoomScene, letter: str) -> ZoomScene:
    """Return the same item with another letter; its view is the same array."""
    pixels = scene.pixels.copy()
    _write_letter(pixels, scene.center, letter)
    return replace(scene, pixels=pixels, letter=letter)


def make_zoom_record(scene: ZoomScene, task_id: str) -> TaskRecord:
    """Turn a scene into a task and its reference."""
    ref, blobs = encode_pixels(scene.pixels, spacing_mm=scene.spacing_mm, modality=scene.modality)
    x, y = scene.center
    half = PATCH_PX // 2
    return TaskRecord(
        task=Task(
            task_id=task_id,
            family=FAMILY,
            question=QUESTION,
            images=(ref,),
            choices=CHOICES,
            metadata={"source": scene.source, "synthetic_insert": True},
        ),
        reference=Reference(
            task_id=task_id,
            answer=scene.letter,
            boxes=np.array([[x - half, y - half, x + half, y + half]], dtype=np.float32),
        ),
        blobs=blobs,
    )
