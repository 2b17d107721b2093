"""Slice: a letter in one coronal or sagittal slice of a volume; its first view, the middle axial slice, has none of it.

The volume is the template of an average brain at 3 mm, on the display scale that MR has throughout the demo set.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from medvista_ray.data.letters import CELLS, LETTERS, letter_cells
from medvista_ray.data.manifest import Split, find_entry
from medvista_ray.data.source_images import display_scale
from medvista_ray.data.volumes import load_canonical, shrink
from medvista_ray.images.codec import digest_of
from medvista_ray.images.volumes import encode_volume
from medvista_ray.types.messages import Choice, Plane, Reference, Task, VolumeRef
from medvista_ray.types.protocols import TaskRecord

FAMILY = "slice"
QUESTION = "Which letter is in {plane} slice {index}?"
CHOICES = tuple(Choice(choice_id=letter, text=letter) for letter in LETTERS)
ENTRIES: dict[Split, str] = {"train": "icbm152-t1", "held_out": "icbm152-asym-brain"}
FACTOR = 3  # the templates have voxels of 1 mm
_PLANES: tuple[Plane, ...] = ("coronal", "sagittal")
_AXES: dict[Plane, int] = {"sagittal": 0, "coronal": 1}
_RANGE = (0.3, 0.7)  # of an axis
_CELL_PX = 3
_PLATE_LEVEL, _LETTER_LEVEL = -150, 230  # the default window shows them as nearly black and nearly white
_SIDE_PX = (CELLS + 2) * _CELL_PX  # of the plate that the letter stands on


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SliceScene:
    """One drawn item."""

    values: np.ndarray  # int16 [X, Y, Z]
    spacing_mm: tuple[float, float, float]
    plane: Plane
    index: int
    corner: tuple[int, int]  # (row, column) of the plate in the slice as it is shown
    letter: str
    source: str


@cache
def load_small_volume(split: Split) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Return the template of a split at 3 mm, int16 [X, Y, Z], and its spacing in mm."""
    values, (x, y, z) = load_canonical(find_entry(ENTRIES[split]))
    small = np.round(display_scale(shrink(values, FACTOR))).astype(np.int16)
    return small, (x * FACTOR, y * FACTOR, z * FACTOR)


def draw_slice_scene(rng: np.random.Generator, split: Split, index: int) -> SliceScene:
    """Draw an item; planes take turns; the letter stands wholly above or wholly below the middle axial slice."""
    values, spacing_mm = load_small_volume(split)
    plane = _PLANES[index % 2]
    count = values.shape[_AXES[plane]]
    height, width = values.shape[2], values.shape[1 - _AXES[plane]]
    middle_row = height - 1 - height // 2  # of the middle axial slice, on the film
    rows = (2, middle_row - _SIDE_PX) if rng.random() < 0.5 else (middle_row + 2, height - _SIDE_PX - 1)
    row = int(rng.integers(rows[0], max(rows[0] + 1, rows[1])))
    scene = SliceScene(
        values=values,
        spacing_mm=spacing_mm,
        plane=plane,
        index=int(rng.integers(int(count * _RANGE[0]), int(count * _RANGE[1]))),
        corner=(row, int(rng.integers(width // 4, 3 * width // 4 - _SIDE_PX + 1))),
        letter="",
        source=ENTRIES[split],
    )
    return with_letter(scene, LETTERS[int(rng.integers(len(LETTERS)))])


def with_letter(scene: SliceScene, letter: str) -> SliceScene:
    """Return the same item with another letter."""
    values = scene.values.copy()
    film = np.moveaxis(values, _AXES[scene.plane], 0)[scene.index].T[::-1, ::-1]  # a view: as `cut_slice` lays it down
    ink = np.kron(letter_cells(letter, CELLS), np.ones((_CELL_PX, _CELL_PX), dtype=bool))
    plate = np.full((_SIDE_PX, _SIDE_PX), _PLATE_LEVEL, dtype=np.int16)
    plate[_CELL_PX:-_CELL_PX, _CELL_PX:-_CELL_PX][ink] = _LETTER_LEVEL
    row, column = scene.corner
    film[row : row + _SIDE_PX, column : column + _SIDE_PX] = plate
    return SliceScene(
        values=values,
        spacing_mm=scene.spacing_mm,
        plane=scene.plane,
        index=scene.index,
        corner=scene.corner,
        letter=letter,
        source=scene.source,
    )


def make_slice_record(scene: SliceScene, task_id: str) -> TaskRecord:
    """Turn a scene into a task and its reference."""
    data = encode_volume(scene.values)
    x, y, z = scene.values.shape
    ref = VolumeRef(digest=digest_of(data), shape=(x, y, z), spacing_mm=scene.spacing_mm, modality="MR")
    return TaskRecord(
        task=Task(
            task_id=task_id,
            family=FAMILY,
            question=QUESTION.format(plane=scene.plane, index=scene.index),
            images=(),
            volumes=(ref,),
            choices=CHOICES,
            metadata={"source": scene.source, "synthetic_insert": True},
        ),
        reference=Reference(task_id=task_id, answer=scene.letter),
        blobs={ref.digest: data},
    )
