"""Tissue: grey matter, white matter or fluid at a ring, and the outline of white matter, from probability maps.

The maps belong to the ICBM 2009a average of 152 brains. Training shows axial and coronal slices of it, held-out items
sagittal ones: it is one brain all the same, and it can be memorised.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from medvista_ray.data.manifest import Split, find_entry
from medvista_ray.data.scene import RING_COLOUR, encode_pixels
from medvista_ray.data.volumes import load_canonical
from medvista_ray.images.volumes import cut_slice
from medvista_ray.images.windowing import to_rgb
from medvista_ray.types.messages import Choice, Plane, Reference, Task
from medvista_ray.types.protocols import TaskRecord

TISSUE, MASK = "tissue", "tissue_mask"
QUESTION = "Which tissue is in the middle of the ring?"
MASK_QUESTION = "Outline the white matter."
TISSUES = {"GM": "grey matter", "WM": "white matter", "CSF": "cerebrospinal fluid"}
CHOICES = tuple(Choice(choice_id=name, text=text) for name, text in TISSUES.items())
_PREFIX: dict[Split, str] = {"train": "icbm152-axial", "held_out": "icbm152-sagittal"}
_PLANES: dict[Split, tuple[Plane, ...]] = {"train": ("axial", "coronal"), "held_out": ("sagittal",)}
_RANGE = (0.3, 0.7)  # of an axis, where all three tissues are found
_MIDLINE_MM = 3  # around the cleft between the halves no slice is sagittal: it shows less than a brain
_LIKELY, _FLUID = 0.9, 0.06  # probability of a tissue at a point; of both tissues together where there is fluid
_FLUID_LEVEL = 110  # fluid is dark in T1: grey levels of the template
_MARGIN_PX = 8
_RING_PX = 4.6, 6.2  # inner and outer radius of the ring


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TissueSlice:
    """One slice of the template and its maps, laid down as a film."""

    pixels: np.ndarray  # uint8 [H, W]
    grey: np.ndarray  # float32 [H, W] probability
    white: np.ndarray  # float32 [H, W] probability
    spacing_mm: tuple[float, float]

    def where(self, tissue: str) -> np.ndarray:
        """Return where a tissue is nearly certain, and so it is in the eight pixels around: bool [H, W]."""
        if tissue == "CSF":
            is_dark = (self.pixels > 0) & (self.pixels < _FLUID_LEVEL)
            return _erode(is_dark & (self.grey + self.white < _FLUID))
        return _erode((self.grey if tissue == "GM" else self.white) > _LIKELY)


@cache
def load_tissue_volumes(split: Split) -> tuple[np.ndarray, ...]:
    """Load the template and its grey and white matter maps: uint8 [X, Y, Z] each, 0 to 255."""
    return tuple(load_canonical(find_entry(f"{_PREFIX[split]}-{name}"))[0] for name in ("t1", "gm", "wm"))


def _cut(split: Split, plane: Plane, index: int) -> TissueSlice:
    pixels, grey, white = (
        cut_slice(volume, (1.0, 1.0, 1.0), plane=plane, index=index) for volume in load_tissue_volumes(split)
    )
    return TissueSlice(
        pixels=pixels.values,
        grey=grey.values.astype(np.float32) / 255.0,
        white=white.values.astype(np.float32) / 255.0,
        spacing_mm=pixels.spacing_mm,
    )


def _draw_slice(rng: np.random.Generator, split: Split, index: int) -> TissueSlice:
    planes = _PLANES[split]
    plane = planes[index % len(planes)]
    axis = ("sagittal", "coronal", "axial").index(plane)
    count = load_tissue_volumes(split)[0].shape[axis]
    places = np.arange(int(count * _RANGE[0]), int(count * _RANGE[1]))
    if plane == "sagittal":
        places = places[np.abs(places - count // 2) > _MIDLINE_MM]
    return _cut(split, plane, int(rng.choice(places)))


def _erode(mask: np.ndarray) -> np.ndarray:
    """Keep the pixels whose eight neighbours are in the mask, too; the border goes."""
    kept = np.zeros_like(mask)
    kept[1:-1, 1:-1] = np.logical_and.reduce(
        [mask[1 + y : mask.shape[0] - 1 + y, 1 + x : mask.shape[1] - 1 + x] for y in (-1, 0, 1) for x in (-1, 0, 1)]
    )
    return kept


def draw_tissue_record(rng: np.random.Generator, split: Split, index: int, task_id: str) -> TaskRecord:
    """Draw a slice and a point in a tissue, ring it, and ask which one it is; tissues take turns."""
    answer = tuple(TISSUES)[index % len(TISSUES)]
    while True:
        cut = _draw_slice(rng, split, index // len(TISSUES))
        candidates = cut.where(answer)
        candidates[:_MARGIN_PX] = candidates[-_MARGIN_PX:] = False
        candidates[:, :_MARGIN_PX] = candidates[:, -_MARGIN_PX:] = False
        rows, columns = np.nonzero(candidates)
        if len(rows):
            break
    place = int(rng.integers(len(rows)))
    x, y = int(columns[place]), int(rows[place])
    pixels = to_rgb(cut.pixels)
    down, across = np.ogrid[: pixels.shape[0], : pixels.shape[1]]
    distance = np.hypot(down - y, across - x)
    pixels[(distance >= _RING_PX[0]) & (distance <= _RING_PX[1])] = RING_COLOUR
    ref, blobs = encode_pixels(pixels, spacing_mm=cut.spacing_mm, modality="MR")
    region = np.array([[x - 7, y - 7, x + 8, y + 8]], dtype=np.float32)
    return TaskRecord(
        task=Task(
            task_id=task_id,
            family=TISSUE,
            question=QUESTION,
            images=(ref,),
            choices=CHOICES,
            metadata={"source": _PREFIX[split], "synthetic_insert": True},
        ),
        reference=Reference(task_id=task_id, answer=answer, regions=region),
        blobs=blobs,
    )


def draw_tissue_mask_record(rng: np.random.Generator, split: Split, index: int, task_id: str) -> TaskRecord:
    """Draw a slice and ask for its white matter: where its probability is at least a half."""
    cut = _draw_slice(rng, split, index)
    ref, blobs = encode_pixels(to_rgb(cut.pixels), spacing_mm=cut.spacing_mm, modality="MR")
    return TaskRecord(
        task=Task(
            task_id=task_id,
            family=MASK,
            question=MASK_QUESTION,
            images=(ref,),
            answer_kind="mask",
            metadata={"source": _PREFIX[split], "synthetic_insert": False},
        ),
        reference=Reference(task_id=task_id, answer="", mask=cut.white >= 0.5),
        blobs=blobs,
    )
