"""Atlas: which structure is in a ring, and on which side of the patient, in the Colin27 brain with its AAL regions.

One brain: training shows axial slices, held-out items coronal ones. AAL follows no visible edge everywhere, so points
lie deep inside a region.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from medvista_ray.data.manifest import Split, find_entry
from medvista_ray.data.scene import RING_COLOUR, encode_pixels
from medvista_ray.data.volumes import load_canonical
from medvista_ray.images.volumes import cut_slice
from medvista_ray.images.windowing import to_rgb
from medvista_ray.types.messages import Choice, Plane, Reference, Task
from medvista_ray.types.protocols import TaskRecord

STRUCTURE, SIDE = "structure_at_point", "side_of_patient"
QUESTION = "Which structure is in the middle of the ring?"
SIDE_QUESTION = "On which side of the patient is the ring? The picture has the patient's right on its left."
SIDES = (Choice(choice_id="right", text="right"), Choice(choice_id="left", text="left"))
# Regions of AAL that have one common name, without _L and _R.
STRUCTURES = {
    "Hippocampus": "hippocampus",
    "Thalamus": "thalamus",
    "Caudate": "caudate nucleus",
    "Putamen": "putamen",
    "Insula": "insula",
    "Precentral": "precentral gyrus",
    "Postcentral": "postcentral gyrus",
    "Precuneus": "precuneus",
    "Cuneus": "cuneus",
    "Fusiform": "fusiform gyrus",
    "Lingual": "lingual gyrus",
    "Calcarine": "calcarine cortex",
    "Angular": "angular gyrus",
    "SupraMarginal": "supramarginal gyrus",
    "Cingulum_Ant": "anterior cingulate gyrus",
    "Temporal_Mid": "middle temporal gyrus",
}
_PLANES: dict[Split, Plane] = {"train": "axial", "held_out": "coronal"}
_ENTRIES: dict[Split, str] = {"train": "colin27-train", "held_out": "colin27-held-out"}
_NUM_CHOICES = 4
_DEEP_VOXELS = 2  # between a point and the border of its region
_RING_PX = 4.6, 6.2


@cache
def load_atlas(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Load the brain, uint8 [X, Y, Z], and its regions, whose border is taken off: uint8 [X, Y, Z]."""
    name = _ENTRIES[split]
    brain, _ = load_canonical(find_entry(f"{name}-t1"))
    labels, _ = load_canonical(find_entry(f"{name}-labels"))
    is_inside = np.ones(labels.shape, dtype=bool)
    for axis in range(3):
        for step in range(1, _DEEP_VOXELS + 1):
            for shift in (-step, step):
                is_inside &= np.roll(labels, shift, axis) == labels
    return brain, np.where(is_inside, labels, 0).astype(np.uint8)


@cache
def list_regions(split: Split) -> dict[str, tuple[int, int]]:
    """Return the labels of the left and the right region of each structure."""
    lines = find_entry(f"{_ENTRIES[split]}-names").locate().read_text().splitlines()
    labels = {fields[1]: int(fields[0]) for line in lines if len(fields := line.split()) >= 2}
    return {name: (labels[f"{name}_L"], labels[f"{name}_R"]) for name in STRUCTURES}


def _draw_point(rng: np.random.Generator, split: Split, name: str, side: int) -> tuple[np.ndarray, int, int]:
    """Draw a point deep inside a region; return the film with a ring around it, uint8 [H, W, 3], and its (x, y)."""
    brain, labels = load_atlas(split)
    plane = _PLANES[split]
    axis = 2 if plane == "axial" else 1
    voxels = np.argwhere(labels == list_regions(split)[name][side])
    voxel = voxels[int(rng.integers(len(voxels)))]
    film = cut_slice(brain, (1.0, 1.0, 1.0), plane=plane, index=int(voxel[axis])).values
    up = int(voxel[1] if plane == "axial" else voxel[2])
    x, y = film.shape[1] - 1 - int(voxel[0]), film.shape[0] - 1 - up
    pixels = to_rgb(film)
    rows, columns = np.ogrid[: film.shape[0], : film.shape[1]]
    distance = np.hypot(rows - y, columns - x)
    pixels[(distance >= _RING_PX[0]) & (distance <= _RING_PX[1])] = RING_COLOUR
    return pixels, x, y


def draw_structure_record(rng: np.random.Generator, split: Split, index: int, task_id: str) -> TaskRecord:
    """Ring a structure and ask which one of four it is; structures take turns."""
    names = tuple(STRUCTURES)
    answer = names[index % len(names)]
    others = [name for name in names if name != answer]
    drawn = [others[int(place)] for place in rng.permutation(len(others))[: _NUM_CHOICES - 1]]
    offered = [answer, *drawn]
    choices = tuple(
        Choice(choice_id=STRUCTURES[offered[int(place)]], text=STRUCTURES[offered[int(place)]])
        for place in rng.permutation(_NUM_CHOICES)
    )
    pixels, x, y = _draw_point(rng, split, answer, int(rng.integers(2)))
    return _make_record(pixels, (x, y), split, (STRUCTURE, QUESTION, choices, STRUCTURES[answer]), task_id)


def draw_side_record(rng: np.random.Generator, split: Split, index: int, task_id: str) -> TaskRecord:
    """Ring a structure and ask for its side; sides take turns."""
    names = tuple(STRUCTURES)
    side = index % 2
    pixels, x, y = _draw_point(rng, split, names[index // 2 % len(names)], side)
    return _make_record(pixels, (x, y), split, (SIDE, SIDE_QUESTION, SIDES, ("left", "right")[side]), task_id)


def _make_record(
    pixels: np.ndarray,
    point: tuple[int, int],
    split: Split,
    asked: tuple[str, str, tuple[Choice, ...], str],
    task_id: str,
) -> TaskRecord:
    family, question, choices, answer = asked
    ref, blobs = encode_pixels(pixels, spacing_mm=(1.0, 1.0), modality="MR")
    x, y = point
    return TaskRecord(
        task=Task(
            task_id=task_id,
            family=family,
            question=question,
            images=(ref,),
            choices=choices,
            metadata={"source": _ENTRIES[split], "synthetic_insert": True},
        ),
        reference=Reference(
            task_id=task_id, answer=answer, regions=np.array([[x - 7, y - 7, x + 8, y + 8]], dtype=np.float32)
        ),
        blobs=blobs,
    )
