"""Numbers of regions: block by block they are those of scikit-image and NumPy, and cost little memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import regionprops

from medvista_ray.tools import regions

SPACINGS = [(1.0, 1.0), (0.4, 0.4), (0.5, 0.25)]


@given(
    seed=st.integers(0, 10_000),
    spacing=st.sampled_from(SPACINGS),
    fill=st.floats(0.05, 1),
    block_pixels=st.sampled_from([1, 7, 40]),
    place=st.tuples(st.integers(0, 9), st.integers(0, 9)),
)
@settings(max_examples=60, deadline=None)
def test_the_shape_in_blocks_anywhere_in_an_image_equals_regionprops(seed, spacing, fill, block_pixels, place):
    rng = np.random.default_rng(seed)
    part = rng.random((rng.integers(1, 20), rng.integers(1, 20))) < fill
    part[0, 0] = True
    mask = np.zeros((30, 33), np.bool_)
    mask[place[0] : place[0] + part.shape[0], place[1] : place[1] + part.shape[1]] = part
    (expected,) = regionprops(mask.astype(np.uint8), spacing=spacing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regions, "_BLOCK_PIXELS", block_pixels)
        shape = regions.compute_shape(mask, spacing)
    assert shape.area_mm2 == pytest.approx(expected.area)
    assert shape.major_axis_mm == pytest.approx(expected.axis_major_length, abs=1e-6)
    assert shape.minor_axis_mm == pytest.approx(expected.axis_minor_length, abs=1e-6)
    assert shape.perimeter_mm == (pytest.approx(expected.perimeter) if spacing[0] == spacing[1] else None)


@pytest.mark.parametrize("block_pixels", [1, 50, 10_000])
@pytest.mark.parametrize("kind", ["float", "whole", "colour"])
def test_statistics_in_blocks_equal_those_of_numpy(monkeypatch, block_pixels, kind):
    monkeypatch.setattr(regions, "_BLOCK_PIXELS", block_pixels)
    rng = np.random.default_rng(3)
    values = {
        "float": rng.normal(1e4, 3, (40, 30)).astype(np.float32),  # a spread that is small beside its mean
        "whole": rng.integers(-32768, 32768, (40, 30), np.int16),
        "colour": rng.integers(0, 256, (40, 30, 3), np.uint8),
    }[kind]
    mask = rng.random((40, 30)) < 0.3
    mask[:5] = mask[9:12] = False
    inside = (values.mean(axis=2) if kind == "colour" else values)[mask].astype(np.float64)
    found = regions.compute_statistics(values, mask)
    assert (found.low, found.high, found.num_pixels) == (inside.min(), inside.max(), inside.size)
    assert (found.mean, found.std) == (pytest.approx(inside.mean(), rel=1e-12), pytest.approx(inside.std(), rel=1e-9))


def test_a_region_of_a_large_image_costs_no_more_than_a_few_bytes_a_pixel():
    mask = np.ones((2048, 2048), np.bool_)
    values = np.zeros(mask.shape, np.int16)
    for compute in (
        lambda: regions.compute_shape(mask, (1.0, 1.0)),
        lambda: regions.compute_statistics(values, mask),
    ):
        tracemalloc.start()
        try:
            compute()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 4 * mask.size


def test_a_small_region_of_a_large_image_costs_its_own_size():
    mask = np.zeros((4096, 4096), np.bool_)
    mask[4000:4010, 70:75] = True
    tracemalloc.start()
    try:
        shape = regions.compute_shape(mask, (1.0, 1.0))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (shape.area_mm2, shape.perimeter_mm) == (50.0, 26.0)
    assert peak < 2**20
