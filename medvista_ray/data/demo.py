"""The demo set: a seeded sequence of tasks drawn from the images of the manifest. Every task is made when asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from medvista_ray.data.families.insert_box import draw_shapes_scene, make_shapes_record
from medvista_ray.data.families.insert_images import load_insert_pool
from medvista_ray.data.families.insert_mask import draw_lesion_scene, make_lesion_record
from medvista_ray.data.families.measure import draw_measure_scene, make_measure_record
from medvista_ray.data.families.structure import draw_structure_scene, make_structure_pools, make_structure_record
from medvista_ray.data.families.window import draw_window_scene, make_window_record
from medvista_ray.data.families.zoom import draw_zoom_scene, make_zoom_record
from medvista_ray.data.manifest import Split
from medvista_ray.data.scene import load_pool
from medvista_ray.errors import ConfigError
from medvista_ray.types.protocols import TaskRecord

Maker = Callable[[np.random.Generator, str], TaskRecord]
FAMILIES = ("zoom", "window", "structure", "measure")  # of a set that names none
INSERT_FAMILIES = ("insert_mask", "insert_box")  # of segmentation and of grounding


@cache
def make_family_maker(source: str, split: Split, family: str) -> Maker:
    """Return the function that draws one task of a family; pools are loaded once."""
    if family == "zoom":
        pool = load_pool(source, split, family)
        return lambda rng, task_id: make_zoom_record(draw_zoom_scene(rng, pool), task_id)
    if family == "window":
        pool = load_pool(source, split, family, keep=lambda image: image.values is not None)
        return lambda rng, task_id: make_window_record(draw_window_scene(rng, pool), task_id)
    if family == "structure":
        pools = make_structure_pools(load_pool(source, split, family))
        return lambda rng, task_id: make_structure_record(draw_structure_scene(rng, pools), task_id)
    if family == "measure":
        pool = load_pool(source, split, family, keep=lambda image: image.spacing_mm is not None)
        return lambda rng, task_id: make_measure_record(draw_measure_scene(rng, pool), task_id)
    if family == "insert_mask":
        pool = load_insert_pool(source, split)
        return lambda rng, task_id: make_lesion_record(draw_lesion_scene(rng, pool), task_id)
    if family == "insert_box":
        pool = load_insert_pool(source, split)
        return lambda rng, task_id: make_shapes_record(draw_shapes_scene(rng, pool), task_id)
    known = ", ".join((*FAMILIES, *INSERT_FAMILIES))
    raise ConfigError(f"data.families: unknown family {family!r}; known: {known}")


class DemoTaskSource:
    """Tasks by index: family by weight, content by (seed, split, index); the same index gives the same bytes."""

    def __init__(
        self, source: str, split: Split, *, families: Sequence[str], weights: Sequence[float], num_tasks: int, seed: int
    ) -> None:
        shares = np.array(weights[: len(families)] if weights else [1.0] * len(families), dtype=np.float64)
        if len(shares) != len(families) or shares.min() < 0 or shares.sum() <= 0:
            raise ConfigError(f"data.weights must be one share >= 0 per family, got {list(weights)}")
        self._makers = [make_family_maker(source, split, family) for family in families]
        self._shares = shares / shares.sum()
        self._prefix = f"{source}-{split}-{seed}"
        self._key = (seed, 0 if split == "train" else 1)
        self._num_tasks = num_tasks

    def __len__(self) -> int:
        """Count the tasks."""
        return self._num_tasks

    def __getitem__(self, index: int) -> TaskRecord:
        """Make the task of an index."""
        if not 0 <= index < self._num_tasks:
            raise IndexError(f"task {index} of {self._num_tasks}")
        rng = np.random.default_rng((*self._key, index))
        maker = self._makers[int(rng.choice(len(self._makers), p=self._shares))]
        return maker(rng, f"{self._prefix}-{index:06d}")
