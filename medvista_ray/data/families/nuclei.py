"""Nuclei: count them, box the largest one, outline one; in tiles of two fluorescence images with instance masks.

Training: one image of the Data Science Bowl 2018. Held out: slices of one confocal volume. Whoever drew the masks
missed or merged a few, so counts have a tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from medvista_ray.data.families.insert_images import box_of
from medvista_ray.data.manifest import Split, find_entry
from medvista_ray.data.scene import FULL_PX, encode_pixels
from medvista_ray.images.windowing import to_rgb
from medvista_ray.types.messages import AnswerKind, Reference, Task
from medvista_ray.types.protocols import TaskRecord

COUNT, BOX, MASK = "nuclei_count", "nuclei_box", "nuclei_mask"
COUNT_QUESTION = "How many nuclei are in the picture? Count those that its border cuts, too."
BOX_QUESTION = "Give a box around the largest nucleus."
MASK_QUESTION = "Outline the nucleus at x = {x}, y = {y} (thousandths of width and height)."
ENTRIES: dict[Split, str] = {"train": "nuclei-2d", "held_out": "nuclei-3d"}
_SLICES = (26, 30, 34, 38, 42)  # of the volume, where nuclei are in focus and labelled
_GAMMA = 0.6  # dim nuclei are seen beside bright ones; our choice
_MIN_VISIBLE_PX = 30  # of a nucleus that is counted, pixels of the source
_MIN_COUNT = 3
_MIN_PIECE = 0.2  # of an instance
_EDGE_PX = 4  # between the largest nucleus and the border of its tile
_COUNT_TOLERANCE = 0.1  # of the number, at least one nucleus
_GOLDEN = 0.618034  # steps of the golden ratio spread the sides of tiles, so that no number is the usual one
_LARGEST_BY = 1.15  # the largest one is larger than the next by this factor
_TILE_SHARE = (0.18, 0.42), (0.40, 1.0)  # side of a tile / side of the image: training, held out
_MASK_ROOM = 2.2, 3.4  # side of a tile / longest side of the nucleus


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NucleiField:
    """One image and its instance masks."""

    pixels: np.ndarray  # uint8 [H, W]
    labels: np.ndarray  # int32 [H, W]; 0 is background
    tile_share: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tile:
    """A square part of a field, resized to 252 px."""

    pixels: np.ndarray  # uint8 [252, 252]
    labels: np.ndarray  # int32 [252, 252]
    scale: float  # pixels of the tile / pixels of the field


@cache
def load_nuclei_fields(split: Split) -> tuple[NucleiField, ...]:
    """Load the fields of a split."""
    name = ENTRIES[split]
    images, labels = (_read_pages(find_entry(entry).locate()) for entry in (name, f"{name}-labels"))
    share = _TILE_SHARE[0 if split == "train" else 1]
    return tuple(
        NucleiField(
            pixels=_to_grey(images[index]), labels=_clean_labels(labels[index].astype(np.int32)), tile_share=share
        )
        for index in ((0,) if len(images) == 1 else _SLICES)
    )


def _read_pages(path: Path) -> list[np.ndarray]:
    pages = []
    with Image.open(path, formats=["TIFF"]) as image:
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            pages.append(np.array(image))
    return pages


def _to_grey(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, [1.0, 99.8])
    share = np.clip((values.astype(np.float32) - low) / max(float(high - low), 1.0), 0.0, 1.0)
    return np.asarray(np.round(share**_GAMMA * 255.0), dtype=np.uint8)


def _clean_labels(labels: np.ndarray) -> np.ndarray:
    """Fill holes of instances, and drop pieces of less than a fifth of their instance."""
    from scipy.ndimage import binary_fill_holes, label

    cleaned = labels.copy()
    for instance in np.unique(labels[labels > 0]):
        filled = binary_fill_holes(labels == instance)
        cleaned[filled & (labels == 0)] = instance
        pieces, count = label(filled)
        for piece in range(1, count + 1):
            if (pieces == piece).sum() < _MIN_PIECE * filled.sum():
                cleaned[pieces == piece] = 0
    return cleaned


def _num_pieces(mask: np.ndarray) -> int:
    from scipy.ndimage import label

    return int(label(mask)[1])


def _cut_tile(field: NucleiField, left: int, top: int, side: int) -> Tile:
    part, labels = (array[top : top + side, left : left + side] for array in (field.pixels, field.labels))
    size = (FULL_PX, FULL_PX)
    return Tile(
        pixels=np.array(Image.fromarray(np.ascontiguousarray(part)).resize(size, Image.Resampling.BICUBIC)),
        labels=np.array(Image.fromarray(np.ascontiguousarray(labels)).resize(size, Image.Resampling.NEAREST)),
        scale=FULL_PX / side,
    )


def _draw_tile(rng: np.random.Generator, field: NucleiField, index: int) -> Tile:
    height, width = field.pixels.shape
    low, high = field.tile_share
    side = int(min(height, width) * (low + (high - low) * (index * _GOLDEN % 1.0)))
    return _cut_tile(field, int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1)), side)


def _visible(tile: Tile) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels in a tile that are large enough to count, and their areas, largest first."""
    found, areas = np.unique(tile.labels[tile.labels > 0], return_counts=True)
    enough = areas >= _MIN_VISIBLE_PX * tile.scale**2
    order = np.argsort(-areas[enough], kind="stable")
    return found[enough][order], areas[enough][order]


def draw_count_record(rng: np.random.Generator, split: Split, index: int, task_id: str) -> TaskRecord:
    """Draw a tile with at least three nuclei and ask for their number."""
    fields = load_nuclei_fields(split)
    for attempt in count(index):
        tile = _draw_tile(rng, fields[index % len(fields)], attempt)
        num_nuclei = len(_visible(tile)[0])
        if num_nuclei >= _MIN_COUNT:
            break
    tolerance = float(max(1, round(_COUNT_TOLERANCE * num_nuclei)))
    reference = Reference(task_id=task_id, answer=str(num_nuclei), absolute_tolerance=tolerance)
    return _make_record(tile, split, COUNT, COUNT_QUESTION, "number", reference)


def draw_box_record(rng: np.random.Generator, split: Split, index: int, task_id: str) -> TaskRecord:
    """Draw a tile whose largest nucleus is whole and clearly the largest, and ask for its box."""
    fields = load_nuclei_fields(split)
    for attempt in count(index):
        tile = _draw_tile(rng, fields[index % len(fields)], attempt)
        labels, areas = _visible(tile)
        if len(labels) < _MIN_COUNT or areas[0] < _LARGEST_BY * areas[1]:
            continue
        x0, y0, x1, y1 = box = box_of(tile.labels == labels[0])
        if min(x0, y0) >= _EDGE_PX and max(x1, y1) <= FULL_PX - _EDGE_PX:
            break
    boxes = np.array([box], dtype=np.float32)
    reference = Reference(task_id=task_id, answer="", boxes=boxes, regions=boxes)
    return _make_record(tile, split, BOX, BOX_QUESTION, "boxes", reference)


@cache
def list_whole_nuclei(split: Split) -> tuple[tuple[int, int], ...]:
    """List the nuclei that no border cuts as (field, label), in an order of our own; an item takes one each."""
    found = []
    for place, field in enumerate(load_nuclei_fields(split)):
        height, width = field.labels.shape
        for label in np.unique(field.labels[field.labels > 0]):
            mask = field.labels == label
            x0, y0, x1, y1 = box_of(mask)
            is_whole = min(x0, y0) > 2 and x1 < width - 2 and y1 < height - 2
            if is_whole and mask.sum() >= 4 * _MIN_VISIBLE_PX and _num_pieces(mask) == 1:  # none that divides
                found.append((place, int(label)))
    order = np.random.default_rng(0).permutation(len(found))
    return tuple(found[int(index)] for index in order)


def draw_mask_record(rng: np.random.Generator, split: Split, index: int, task_id: str) -> TaskRecord:
    """Take the nucleus of an index, draw a tile around it and ask for its outline."""
    place, label = list_whole_nuclei(split)[index]
    field = load_nuclei_fields(split)[place]
    x0, y0, x1, y1 = box_of(field.labels == label)
    longest = min(field.pixels.shape)
    side = int(min(longest, max(x1 - x0, y1 - y0) * rng.uniform(*_MASK_ROOM)))
    left, top = (
        int(rng.integers(max(0, end + 3 - side), max(1, min(start - 2, size - side + 1))))
        for start, end, size in ((x0, x1, field.pixels.shape[1]), (y0, y1, field.pixels.shape[0]))
    )
    tile = _cut_tile(field, left, top, side)
    mask = tile.labels == label
    x, y = _inner_point(mask)
    question = MASK_QUESTION.format(x=round((x + 0.5) * 1000 / FULL_PX), y=round((y + 0.5) * 1000 / FULL_PX))
    regions = np.array([box_of(mask)], dtype=np.float32)
    reference = Reference(task_id=task_id, answer="", mask=mask, regions=regions)
    return _make_record(tile, split, MASK, question, "mask", reference)


def _inner_point(mask: np.ndarray) -> tuple[int, int]:
    """Return the pixel (x, y) of a mask next to its centre of mass."""
    rows, columns = np.nonzero(mask)
    nearest = int(np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2))
    return int(columns[nearest]), int(rows[nearest])


def _make_record(
    tile: Tile, split: Split, family: str, question: str, kind: AnswerKind, reference: Reference
) -> TaskRecord:
    ref, blobs = encode_pixels(to_rgb(tile.pixels), spacing_mm=None, modality="GM")
    task = Task(
        task_id=reference.task_id,
        family=family,
        question=question,
        images=(ref,),
        answer_kind=kind,
        unit="nuclei" if kind == "number" else "",
        metadata={"source": ENTRIES[split], "synthetic_insert": False},
    )
    return TaskRecord(task=task, reference=reference, blobs=blobs)
