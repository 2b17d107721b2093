"""Scenes of the demo set, drawn once for all tests; loading their sources takes a second."""

from __future__ import annotations

import json

import numpy as np
import pytest
from miniatures import WRITERS

from medvista_ray.data.families.window import WindowScene, draw_window_scene
from medvista_ray.data.families.zoom import ZoomScene, draw_zoom_scene
from medvista_ray.data.folder import FolderTaskSource
from medvista_ray.data.prepare import PrepareSettings, prepare
from medvista_ray.data.scene import load_pool

NUM_ITEMS = 300
SPLITS = ("train", "held_out")


def item_rng(split: str, index: int, *, seed: int = 0) -> np.random.Generator:
    """The generator of one item of a source with one family, as `DemoTaskSource` makes it."""
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    rng.choice(1, p=[1.0])  # the draw of the family
    return rng


@pytest.fixture(scope="session")
def zoom_scenes() -> dict[str, list[ZoomScene]]:
    pools = {split: load_pool("demo", split, "zoom") for split in SPLITS}
    return {
        split: [draw_zoom_scene(item_rng(split, index), pools[split]) for index in range(NUM_ITEMS)] for split in SPLITS
    }


@pytest.fixture(scope="session")
def window_scenes() -> dict[str, list[WindowScene]]:
    pools = {split: load_pool("demo", split, "window", keep=lambda image: image.values is not None) for split in SPLITS}
    return {
        split: [draw_window_scene(item_rng(split, index), pools[split]) for index in range(NUM_ITEMS)]
        for split in SPLITS
    }


@pytest.fixture
def made(tmp_path):
    """Return a function that writes a miniature, prepares it and returns the result, its records and its rows."""

    def make(name, *, written=None, **settings):
        source = written or WRITERS[name](tmp_path / "published")
        out = tmp_path / "out"
        prepared = prepare(name, source, out, settings=PrepareSettings(**settings))
        sources = {split: FolderTaskSource(out, split) for split in SPLITS}
        records = {split: [tasks[index] for index in range(len(tasks))] for split, tasks in sources.items()}
        rows = [json.loads(line) for line in (out / "tasks.jsonl").read_text().splitlines()]
        return prepared, records, rows

    return make
