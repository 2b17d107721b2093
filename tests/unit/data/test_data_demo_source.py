"""Tasks by index: the same every time, from the right split, with nothing in them but what is allowed."""

from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np
import pytest

from medvista_ray.data.demo import FAMILIES, DemoTaskSource
from medvista_ray.data.families.structure import (
    MODALITIES,
    PLANES,
    QUADRANTS,
    draw_structure_scene,
    make_structure_pools,
    make_structure_record,
)
from medvista_ray.data.manifest import load_manifest
from medvista_ray.data.scene import FULL_PX, RING_COLOUR, load_pool, vary_look
from medvista_ray.data.sources import make_task_source
from medvista_ray.errors import ConfigError, DataError
from medvista_ray.images.codec import decode, digest_of

pytestmark = pytest.mark.xdist_group("scenes")  # one process makes what its tests share

ALLOWED_KEYS = {"source", "synthetic_insert"}


def make_source(source="pocket", split="train", *, families=FAMILIES, num_tasks=16, seed=0):
    return DemoTaskSource(
        source, split, families=families, weights=(1.0,) * len(families), num_tasks=num_tasks, seed=seed
    )


def bytes_of(record):
    reference = record.reference
    text = repr((record.task, reference.answer, reference.tolerance, reference.boxes.tolist()))
    return text, sorted(record.blobs.items())


def test_an_index_gives_the_same_bytes_in_any_order():
    one, other = make_source(), make_source()
    backwards = {index: bytes_of(other[index]) for index in reversed(range(len(other)))}
    assert [bytes_of(one[index]) for index in range(len(one))] == [backwards[index] for index in range(len(one))]


def test_another_seed_or_split_or_index_is_another_item():
    sources = [make_source(), make_source(seed=1), make_source(split="held_out")]
    digests = [digest for source in sources for index in range(len(source)) for digest in source[index].blobs]
    assert len(set(digests)) == len(digests)
    ids = [source[index].task.task_id for source in sources for index in range(len(source))]
    assert len(set(ids)) == len(ids)


def test_a_family_is_drawn_by_its_weight():
    source = DemoTaskSource(
        "pocket", "train", families=("window", "zoom"), weights=(9, 1), num_tasks=100, seed=5
    )  # fmt: skip
    windows = sum(source[index].task.family == "window" for index in range(100))
    assert 82 <= windows <= 97


@pytest.mark.parametrize(("source", "split"), [("pocket", "train"), ("demo", "held_out")])
def test_a_record_holds_what_is_allowed(source, split):
    tasks = make_source(source, split, num_tasks=24)
    entries = {entry.name: entry for entry in load_manifest()}
    seen = set()
    for index in range(len(tasks)):
        record = tasks[index]
        task = record.task
        seen.add(task.family)
        assert task.metadata.keys() == ALLOWED_KEYS
        entry = entries[task.metadata["source"]]
        assert entry.split == split
        assert task.family in entry.families
        assert source in entry.sets
        aspect = task.choices[0].choice_id if task.family == "structure" else ""
        assert task.metadata["synthetic_insert"] is (aspect not in (PLANES[0], MODALITIES[0]))
        assert record.reference.task_id == task.task_id
        assert [ref.digest for ref in task.images] == list(record.blobs)
        for ref in task.images:
            data = record.blobs[ref.digest]
            assert digest_of(data) == ref.digest
            assert decode(data, ref.mime).shape[:2] == (ref.height, ref.width)
        if task.choices:
            assert record.reference.answer in [choice.choice_id for choice in task.choices]
    assert seen == set(FAMILIES)


def test_the_answer_of_a_measure_task_is_in_its_question():
    tasks = make_source(families=("measure",), num_tasks=25)
    for index in range(len(tasks)):
        record = tasks[index]
        x0, y0, x1, y1 = (int(text) for text in re.findall(r"\d+", record.task.question))
        row_mm, column_mm = record.task.images[0].spacing_mm
        distance = math.hypot((x1 - x0) * column_mm, (y1 - y0) * row_mm)
        assert float(record.reference.answer) == pytest.approx(distance, abs=0.051)
        assert record.reference.tolerance == 0.05


def test_structure_answers_are_balanced_and_true_to_the_ring():
    pools = make_structure_pools(load_pool("demo", "train", "structure"))
    counts: Counter[str] = Counter()
    for index in range(160):
        scene = draw_structure_scene(np.random.default_rng(index), pools)
        counts[scene.answer] += 1
        if scene.aspect == "quadrant":
            rows, columns = (scene.pixels == RING_COLOUR).all(axis=2).nonzero()
            half = FULL_PX // 2
            assert scene.answer == QUADRANTS[int(rows.mean() >= half) * 2 + int(columns.mean() >= half)]
    assert set(counts) == {*QUADRANTS, *PLANES, *MODALITIES}
    for answers in (QUADRANTS, PLANES, MODALITIES):
        found = [counts[answer] for answer in answers]
        assert max(found) < 2.5 * min(found)


def test_the_modality_question_does_not_come_with_its_answer():
    pools = make_structure_pools(load_pool("demo", "train", "structure"))
    scene = draw_structure_scene(np.random.default_rng(0), pools, aspect="modality")
    (ref,) = make_structure_record(scene, "t").task.images
    assert ref.modality is None


def test_colours_vary_in_training_only():
    assert load_pool("demo", "train", "zoom").augment
    assert not load_pool("demo", "held_out", "zoom").augment
    grey = np.repeat(np.arange(0, 256, 5, dtype=np.uint8)[:, None, None], 3, axis=2)
    before = grey.copy()
    plain = [vary_look(np.random.default_rng(index), grey, augment=False) for index in range(50)]
    varied = [vary_look(np.random.default_rng(index), grey, augment=True) for index in range(50)]
    assert np.array_equal(grey, before)
    assert all((image[..., 0] == image[..., 1]).all() and image[0, 0, 0] <= image[-1, 0, 0] for image in plain)
    tinted = sum(bool((image[..., 0] != image[..., 1]).any()) for image in varied)
    inverted = sum(bool(image[0, 0, 0] > image[-1, 0, 0]) for image in varied)
    assert 15 <= tinted <= 35
    assert 4 <= inverted <= 18
    for image in varied:  # a pure green ring stays apart from what was grey: no tint is all green
        greens = image[..., 1].astype(int)
        assert (greens - np.maximum(image[..., 0], image[..., 2]) < 200).all()


def test_more_than_200_held_out_items_differ(zoom_scenes, window_scenes):
    assert len({scene.pixels.tobytes() for scene in zoom_scenes["held_out"]}) >= 200
    assert len({scene.values.tobytes() for scene in window_scenes["held_out"]}) >= 200
    pools = make_structure_pools(load_pool("demo", "held_out", "structure"))
    drawn = [draw_structure_scene(np.random.default_rng((0, 1, index)), pools) for index in range(200)]
    assert len({scene.pixels.tobytes() for scene in drawn}) >= 200


def test_wrong_use_is_one_line():
    with pytest.raises(ConfigError, match=r"^data\.families: unknown family 'smell'; known: zoom, window"):
        make_source(families=("smell",))
    assert len(make_task_source("pocket", "train", families=(), weights=(), num_tasks=0, seed=0)) == 1024
    for weights in ((-1.0,), (0.0,)):
        with pytest.raises(ConfigError, match=r"^data\.weights must be"):
            DemoTaskSource("pocket", "train", families=("zoom",), weights=weights, num_tasks=1, seed=0)
    with pytest.raises(ConfigError, match=r"^data\.source: '/nowhere' is neither"):
        make_task_source("/nowhere", "train", families=("zoom",), weights=(1,), num_tasks=1, seed=0)
    with pytest.raises(DataError, match="no train image"):
        make_source(source="other", families=("zoom",))
    for index in (-1, 16):
        with pytest.raises(IndexError):
            make_source()[index]
