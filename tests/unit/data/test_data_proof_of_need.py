"""The proof that a tool is needed: first views do not depend on the answer, and nothing else tells it either."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from medvista_ray.data.demo import DemoTaskSource
from medvista_ray.data.families import window, zoom
from medvista_ray.data.letters import BLOCK_PX, CELLS, LETTERS, PATCH_PX, letter_cells, texture_patch
from medvista_ray.data.scene import FULL_PX, VIEW_PX
from medvista_ray.images.codec import decode
from medvista_ray.images.geometry import downscale
from medvista_ray.images.windowing import PRESETS
from medvista_ray.tools.renderer import ViewRenderer
from medvista_ray.tools.views import View, default_window

pytestmark = pytest.mark.xdist_group("scenes")  # one process makes what its tests share

SPLITS = ("train", "held_out")
both_splits = pytest.mark.parametrize("split", SPLITS)


def source_of(family, split, num_tasks=300):
    return DemoTaskSource("demo", split, families=(family,), weights=(1.0,), num_tasks=num_tasks, seed=0)


@both_splits
def test_the_scenes_are_the_items(split, zoom_scenes, window_scenes):
    for index in range(0, 300, 30):
        record = source_of("zoom", split)[index]
        scene = zoom_scenes[split][index]
        (ref,) = record.task.images
        assert np.array_equal(decode(record.blobs[ref.digest], ref.mime), scene.pixels)
        assert record.reference.answer == scene.letter
        record = source_of("window", split)[index]
        scene = window_scenes[split][index]
        (ref,) = record.task.images
        assert np.array_equal(decode(record.blobs[ref.digest], ref.mime), np.round(scene.values))
        assert record.reference.answer == scene.letter


class Blobs(dict):
    """The least that a view renderer writes to."""

    def missing(self, digests):
        return [digest for digest in digests if digest not in self]

    def put(self, data):
        self[len(self)] = data


@both_splits
@pytest.mark.parametrize("family", ["zoom", "window"])
def test_the_view_of_a_scene_is_what_the_policy_is_shown(family, split, zoom_scenes, window_scenes):
    scenes = zoom_scenes if family == "zoom" else window_scenes
    for index in range(0, 300, 60):
        record = source_of(family, split)[index]
        (ref,) = record.task.images
        view = View(source_index=0, window=default_window(ref))
        rendered = ViewRenderer(Blobs(), view_size_px=VIEW_PX).render(ref, view, load=record.blobs.__getitem__)
        scene = scenes[split][index]
        assert np.array_equal(rendered.pixels, scene.view if family == "zoom" else scene.view())


@both_splits
def test_every_zoom_item_has_one_first_view_for_all_answers(split, zoom_scenes):
    for scene in zoom_scenes[split]:
        others = [zoom.with_letter(scene, letter) for letter in LETTERS]
        assert np.array_equal(others[LETTERS.index(scene.letter)].pixels, scene.pixels)
        for other in others:
            assert np.array_equal(downscale(other.pixels, VIEW_PX), scene.view)


@both_splits
def test_every_zoom_letter_is_in_the_crop_of_its_cell_and_nowhere_else(split, zoom_scenes):
    third = FULL_PX // 3
    for scene in zoom_scenes[split]:
        row, column = divmod(scene.cell, 3)
        cell = np.zeros((FULL_PX, FULL_PX), bool)
        cell[row * third : (row + 1) * third, column * third : (column + 1) * third] = True
        images = [zoom.with_letter(scene, letter).pixels[..., 1].astype(np.int16) for letter in LETTERS]
        for first, second in combinations(images, 2):
            differs = first != second
            assert not differs[~cell].any()
            # at least four cells of ink, 32 textured px each, differ by 100 grey levels
            assert (np.abs(first - second) >= 100).sum() >= 4 * 32
        x, y = scene.center
        part = scene.pixels[max(0, y - 20) : y + 24, max(0, x - 20) : x + 24, 1]
        windows = np.lib.stride_tricks.sliding_window_view(part, (PATCH_PX, PATCH_PX))
        assert (windows == texture_patch(scene.letter)).all(axis=(2, 3)).any()


@both_splits
def test_every_window_item_has_one_first_view_for_all_answers(split, window_scenes):
    for scene in window_scenes[split]:
        others = [window.with_letter(scene, letter) for letter in LETTERS]
        assert np.array_equal(others[LETTERS.index(scene.letter)].values, scene.values)
        for other in others:
            assert np.array_equal(other.view(), scene.view())


@both_splits
def test_every_window_letter_is_readable_under_exactly_one_preset(split, window_scenes):
    for scene in window_scenes[split]:
        assert [preset for preset in PRESETS if scene.is_readable(preset)] == [scene.kind]
        shown = [window.with_letter(scene, letter).view(scene.kind) for letter in LETTERS]
        for first, second in combinations(shown, 2):
            assert np.abs(first.astype(int) - second).max() > 10  # grey levels


@both_splits
def test_no_constant_preset_wins(split, window_scenes):
    shares = Counter(scene.kind for scene in window_scenes[split])
    assert set(shares) == set(window.KINDS)
    assert min(shares.values()) >= 0.2 * len(window_scenes[split])
    assert all(preset in PRESETS for preset in shares)


def check_independent(letters, labels):
    """Fail when a chi-square statistic is more than four standard deviations above what chance gives."""
    table = Counter(zip(letters, labels, strict=True))
    rows, columns, total = Counter(letters), Counter(labels), len(letters)
    statistic = sum(
        (table[row, column] - rows[row] * columns[column] / total) ** 2 / (rows[row] * columns[column] / total)
        for row in rows
        for column in columns
    )
    freedom = (len(rows) - 1) * (len(columns) - 1)
    assert statistic < freedom + 4 * math.sqrt(2 * freedom), (statistic, freedom)


def test_the_letter_is_independent_of_source_position_and_preset(zoom_scenes, window_scenes):
    zooms = [scene for split in SPLITS for scene in zoom_scenes[split]]
    letters = [scene.letter for scene in zooms]
    check_independent(letters, [scene.source for scene in zooms])
    check_independent(letters, [scene.cell for scene in zooms])
    check_independent(letters, [(scene.center[0] % 84 // 42, scene.center[1] % 84 // 42) for scene in zooms])
    windows = [scene for split in SPLITS for scene in window_scenes[split]]
    letters = [scene.letter for scene in windows]
    check_independent(letters, [scene.source for scene in windows])
    check_independent(letters, [scene.kind for scene in windows])
    check_independent(letters, [scene.cell_px for scene in windows])
    check_independent(letters, [(scene.center[0] // 28, scene.center[1] // 28) for scene in windows])


def test_the_independence_check_finds_a_dependence():
    with pytest.raises(AssertionError):
        check_independent(list("LTXJ" * 150), [index % 4 // 2 for index in range(600)])


def test_every_answer_and_every_place_is_about_as_common(zoom_scenes, window_scenes):
    for scenes in (zoom_scenes, window_scenes):
        for split in SPLITS:
            counts = Counter(scene.letter for scene in scenes[split])
            assert set(counts) == set(LETTERS)
            assert max(counts.values()) < 0.35 * len(scenes[split])
    cells = Counter(scene.cell for split in SPLITS for scene in zoom_scenes[split])
    assert set(cells) == set(range(9))
    assert max(cells.values()) < 0.18 * 600


@pytest.mark.parametrize("size", [CELLS, 7])
def test_letters_have_the_same_ink(size):
    counts = {letter: int(letter_cells(letter, size).sum()) for letter in LETTERS}
    assert set(counts.values()) == {2 * size - 1}
    for first, second in combinations(LETTERS, 2):
        assert (letter_cells(first, size) != letter_cells(second, size)).sum() >= 4


def test_texture_has_the_same_mean_in_every_block_and_the_same_sum_for_every_letter():
    patches = [texture_patch(letter) for letter in LETTERS]
    blocks = PATCH_PX // BLOCK_PX
    for patch in patches:
        means = patch.reshape(blocks, BLOCK_PX, blocks, BLOCK_PX).mean(axis=(1, 3))
        assert np.array_equal(means, np.full((blocks, blocks), 128.0))
        assert np.sort(patch.ravel()).tolist() == np.sort(patches[0].ravel()).tolist()


def test_there_is_no_fifth_letter():
    with pytest.raises(ValueError, match="one of"):
        letter_cells("A", 5)
