"""The embedded set: a finite list of tasks for the three task families, made from pip packages alone.

An index gives the same bytes always. Families take turns in proportion to their size, so that every prefix of the list
is balanced; within a family sources take turns, so that none has more than its share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Literal

import numpy as np

from medvista_ray.data.families import atlas, head_ct, header, letter_slice, nuclei, tissue
from medvista_ray.data.families.caliper import list_caliper_items, make_caliper_record
from medvista_ray.data.families.insert_box import draw_shapes_scene, make_shapes_record
from medvista_ray.data.families.insert_mask import draw_lesion_scene, make_lesion_record
from medvista_ray.data.families.measure import draw_measure_scene, make_measure_record
from medvista_ray.data.families.ocr import list_ocr_items, make_ocr_record
from medvista_ray.data.families.window import draw_window_scene, make_window_record
from medvista_ray.data.families.zoom import draw_zoom_scene, make_zoom_record
from medvista_ray.data.manifest import Split
from medvista_ray.data.scene import Pool, load_pool
from medvista_ray.data.source_images import SourceImage
from medvista_ray.data.us_frames import load_frames
from medvista_ray.errors import ConfigError
from medvista_ray.types.protocols import TaskRecord

Group = Literal["vqa", "segmentation", "grounding"]
Maker = Callable[[np.random.Generator, int, str], TaskRecord]  # generator, turn within the family, task id
SOURCE = "embedded"
_SEED = 20260101  # of the list; another seed is another data set
_SPLITS: tuple[Split, Split] = ("train", "held_out")
# Here answers take turns, in an order of our own: the number of a task does not tell its answer.
_SHUFFLED = ("tissue", "structure_at_point", "side_of_patient", "hu_at_patch")
_DRAWN_FROM = "demo"  # the set whose images the drawn families share, with its split


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family of the list."""

    group: Group  # the env that its tasks are for
    counts: tuple[int, int]  # items of training, held out


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "zoom": Family(group="vqa", counts=(72, 36)),
        "window": Family(group="vqa", counts=(72, 36)),
        "slice": Family(group="vqa", counts=(60, 30)),
        "measure": Family(group="vqa", counts=(24, 12)),
        "header": Family(group="vqa", counts=(54, 30)),
        "ocr": Family(group="vqa", counts=(52, 36)),
        "tissue": Family(group="vqa", counts=(42, 24)),
        "nuclei_count": Family(group="vqa", counts=(24, 15)),
        "caliper": Family(group="vqa", counts=(4, 4)),
        "insert_mask": Family(group="segmentation", counts=(120, 60)),
        "nuclei_mask": Family(group="segmentation", counts=(60, 40)),
        "tissue_mask": Family(group="segmentation", counts=(24, 12)),
        "insert_box": Family(group="grounding", counts=(120, 60)),
        "nuclei_box": Family(group="grounding", counts=(60, 40)),
    }
)
GROUPS: tuple[Group, ...] = ("vqa", "segmentation", "grounding")
# From the optional Debian packages: listed only by name, so that the list is the same with and without them.
DEBIAN_FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "structure_at_point": Family(group="vqa", counts=(96, 48)),
        "side_of_patient": Family(group="vqa", counts=(32, 16)),
        "hu_at_patch": Family(group="vqa", counts=(60, 30)),
    }
)
_ALL = MappingProxyType({**FAMILIES, **DEBIAN_FAMILIES})


def families_of(group: Group) -> tuple[str, ...]:
    """Return the families whose tasks are for one kind of env."""
    return tuple(name for name, family in FAMILIES.items() if family.group == group)


@cache
def open_family(family: str, split: Split) -> Maker:
    """Load what a family needs in a split; return what makes its tasks."""
    if family in _DRAWN:
        return _open_drawn(family, split)
    if family in _SPLIT_DRAWN:
        draw = _SPLIT_DRAWN[family]
        return lambda rng, index, task_id: draw(rng, split, index, task_id)
    if family == "ocr":
        strings = list_ocr_items(load_frames(split))
        return lambda rng, index, task_id: make_ocr_record(strings[index], task_id)
    if family == "caliper":
        calipers = list_caliper_items(load_frames(split))
        return lambda rng, index, task_id: make_caliper_record(calipers[index], task_id)
    if family == "header":
        fields = header.list_header_items(split)
        return lambda rng, index, task_id: header.make_header_record(fields[index], task_id)
    raise ConfigError(f"data.families: unknown family {family!r}; known: {', '.join(_ALL)}, and {', '.join(GROUPS)}")


def _open_drawn(family: str, split: Split) -> Maker:
    listed_as, keep, make = _DRAWN[family]
    pool = load_pool(_DRAWN_FROM, split, listed_as, keep=keep)
    pools = [Pool(sources=(group,), augment=pool.augment) for group in pool.sources]
    return lambda rng, index, task_id: make(rng, pools[index % len(pools)], task_id)


def _draw_slice(rng: np.random.Generator, split: Split, index: int, task_id: str) -> TaskRecord:
    return letter_slice.make_slice_record(letter_slice.draw_slice_scene(rng, split, index), task_id)


def _make_measure_record(rng: np.random.Generator, pool: Pool, task_id: str) -> TaskRecord:
    """Make the task of the demo set, and say what its points and its answer are in."""
    record = make_measure_record(draw_measure_scene(rng, pool), task_id)
    question = f"{record.task.question} The points are x,y in pixels of the image."
    return replace(record, task=replace(record.task, question=question, answer_kind="number", unit="mm"))


def _any_image(image: SourceImage) -> bool:
    return True


def _has_values(image: SourceImage) -> bool:
    return image.values is not None


def _has_spacing(image: SourceImage) -> bool:
    return image.spacing_mm is not None


# family -> (family whose images it shares, which of them, what makes a task from a pool)
_DRAWN: Mapping[
    str,
    tuple[str, Callable[[SourceImage], bool], Callable[[np.random.Generator, Pool, str], TaskRecord]],
] = {
    "zoom": ("zoom", _any_image, lambda rng, pool, task_id: make_zoom_record(draw_zoom_scene(rng, pool), task_id)),
    "window": (
        "window",
        _has_values,
        lambda rng, pool, task_id: make_window_record(draw_window_scene(rng, pool), task_id),
    ),
    "measure": (
        "measure",
        _has_spacing,
        lambda rng, pool, task_id: _make_measure_record(rng, pool, task_id),
    ),
    "insert_mask": (
        "zoom",
        _any_image,
        lambda rng, pool, task_id: make_lesion_record(draw_lesion_scene(rng, pool), task_id),
    ),
    "insert_box": (
        "zoom",
        _any_image,
        lambda rng, pool, task_id: make_shapes_record(draw_shapes_scene(rng, pool), task_id),
    ),
}
_SPLIT_DRAWN: Mapping[str, Callable[[np.random.Generator, Split, int, str], TaskRecord]] = {
    "slice": _draw_slice,
    "tissue": tissue.draw_tissue_record,
    "tissue_mask": tissue.draw_tissue_mask_record,
    "nuclei_count": nuclei.draw_count_record,
    "nuclei_box": nuclei.draw_box_record,
    "nuclei_mask": nuclei.draw_mask_record,
    "structure_at_point": atlas.draw_structure_record,
    "side_of_patient": atlas.draw_side_record,
    "hu_at_patch": head_ct.draw_patch_record,
}


class EmbeddedTaskSource:
    """Tasks of the embedded set by index."""

    def __init__(self, split: Split, *, families: Sequence[str] = (), max_tasks: int = 0) -> None:
        """List the tasks; each is made when it is asked for.

        Args:
            split: which half.
            families: names of families, or of groups: vqa, segmentation, grounding; empty = all.
            max_tasks: 0 = all, else the first so many of the list, in which families keep their proportions.
        """
        self._split = split
        self._places = _interleave(_expand(families), _SPLITS.index(split))
        if max_tasks:
            del self._places[max_tasks:]
        for family in dict.fromkeys(family for family, _ in self._places):
            open_family(family, split)

    def __len__(self) -> int:
        """Count the tasks."""
        return len(self._places)

    def __getitem__(self, index: int) -> TaskRecord:
        """Make the task of an index."""
        if not 0 <= index < len(self._places):
            raise IndexError(f"task {index} of {len(self._places)}")
        family, place = self._places[index]
        task_id = f"{SOURCE}-{self._split}-{family}-{place:03d}"
        turn = _turns(family, self._split)[place] if family in _SHUFFLED else place
        return open_family(family, self._split)(_make_rng(family, self._split, place), turn, task_id)


def _make_rng(family: str, split: Split, place: int) -> np.random.Generator:
    return np.random.default_rng((_SEED, list(_ALL).index(family), _SPLITS.index(split), place))


@cache
def _turns(family: str, split: Split) -> tuple[int, ...]:
    """Return whose turn it is at each place of a family: all of them, in an order of our own."""
    count = _ALL[family].counts[_SPLITS.index(split)]
    return tuple(_make_rng(family, split, count).permutation(count).tolist())  # no place has that number


def _expand(names: Sequence[str]) -> list[str]:
    """Replace the name of a group by its families."""
    expanded: dict[str, None] = {}
    for name in names or GROUPS:
        if name in GROUPS:
            expanded |= dict.fromkeys(families_of(name))
        elif name in _ALL:
            expanded[name] = None
        else:
            known = ", ".join((*GROUPS, *_ALL))
            raise ConfigError(f"data.families: the embedded set has no {name!r}; known: {known}")
    return list(expanded)


def _interleave(families: Sequence[str], side: int) -> list[tuple[str, int]]:
    """Order the items of all families by how far each stands in its own: (family, index within it)."""
    places = [
        ((place + 0.5) / _ALL[family].counts[side], rank, family, place)
        for rank, family in enumerate(families)
        for place in range(_ALL[family].counts[side])
    ]
    return [(family, place) for _, _, family, place in sorted(places)]
