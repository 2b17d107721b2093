"""Maps between derived images and their source are exact; shrinking averages whole blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from medvista_ray.images.geometry import Transform, box_from_thousandths, crop_and_scale, downscale

numbers = st.integers(-6, 6).map(float)
transforms = st.tuples(*[numbers] * 6).map(lambda values: Transform(coefficients=values))
sizes = st.integers(1, 60)


@settings(max_examples=50, deadline=None)
@given(transforms, transforms, numbers, numbers)
def test_after_is_the_one_and_then_the_other(outer, inner, x, y):
    assert outer.after(inner).point(x, y) == outer.point(*inner.point(x, y))  # whole numbers: exactly


@settings(max_examples=50, deadline=None)
@given(transforms, numbers, numbers)
def test_inverse_point_takes_a_point_back(transform, x, y):
    a, b, _, d, e, _ = transform.coefficients
    assume(a * e != b * d)
    assert transform.inverse_point(*transform.point(x, y)) == pytest.approx((x, y), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(transforms, numbers, numbers, sizes, sizes)
def test_a_mapped_box_is_sorted_and_holds_its_corners(transform, x, y, width, height):
    x0, y0, x1, y1 = transform.box((x, y, x + width, y + height))
    assert x0 <= x1
    assert y0 <= y1
    for corner in (transform.point(x, y), transform.point(x + width, y + height)):
        assert corner[0] in (x0, x1)
        assert corner[1] in (y0, y1)


def test_the_default_map_is_no_map():
    assert Transform().point(3.25, -1.5) == (3.25, -1.5)


@settings(max_examples=50, deadline=None)
@given(width=sizes, height=sizes)
def test_thousandths_span_the_image(width, height):
    assert box_from_thousandths((0, 0, 1000, 1000), width, height) == (0, 0, width, height)
    x0, y0, x1, y1 = box_from_thousandths((250, 500, 750, 1000), width, height)
    assert (x0, y0, x1, y1) == pytest.approx((width / 4, height / 2, width * 3 / 4, height))


@settings(max_examples=50, deadline=None)
@given(data=st.data(), width=st.integers(2, 50), height=st.integers(2, 50), side=st.integers(1, 80))
def test_a_crop_knows_where_it_lies(data, width, height, side):
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows, columns, rows * 0], axis=2).astype(np.uint8)
    crop, to_source = crop_and_scale(pixels, (x0, y0, x1, y1), side)
    assert max(crop.shape[:2]) == side
    assert to_source.box((0, 0, crop.shape[1], crop.shape[0])) == pytest.approx((x0, y0, x1, y1))
    # A pixel shows the place that the map names; resampling moves a value by at most one source pixel or one step.
    x, y = to_source.point(crop.shape[1] / 2, crop.shape[0] / 2)
    shown = crop[crop.shape[0] // 2, crop.shape[1] // 2].astype(float)
    step_x, step_y = to_source.coefficients[0], to_source.coefficients[4]
    assert abs(shown[1] + 0.5 - x) <= max(1.0, step_x) + 1
    assert abs(shown[0] + 0.5 - y) <= max(1.0, step_y) + 1


def test_a_crop_of_its_own_size_is_the_pixels_themselves():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    crop, to_source = crop_and_scale(pixels, (10.2, 5.4, 29.8, 15.3), 20)
    assert np.array_equal(crop, pixels[5:15, 10:30])
    assert to_source.point(0, 0) == (10.0, 5.0)


def test_a_box_is_clipped_and_an_empty_one_refused():
    pixels = np.zeros((8, 8, 3), np.uint8)
    _, to_source = crop_and_scale(pixels, (-5, -5, 4, 100), 8)
    assert to_source.box((0, 0, 4, 8)) == (0, 0, 4, 8)
    for box in ((3, 3, 3, 6), (5, 5, 2, 2), (9, 0, 12, 4), (3.1, 0, 3.4, 8)):
        with pytest.raises(ValueError, match="holds no pixel"):
            crop_and_scale(pixels, box, 8)


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 6), columns=st.integers(1, 6), factor=st.integers(1, 5), seed=st.integers(0, 99))
def test_a_whole_factor_averages_blocks(rows, columns, factor, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (rows * factor, columns * factor, 3), dtype=np.uint8)
    small = downscale(pixels, max(rows, columns))
    means = pixels.reshape(rows, factor, columns, factor, 3).mean(axis=(1, 3))
    assert small.shape == (rows, columns, 3)
    assert np.abs(small - means).max() < 0.75  # Pillow rounds in fixed point


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 99))
def test_blocks_of_equal_sum_give_the_same_bytes(seed):
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    blocks = first.reshape(4, 3, 4, 3, 3).transpose(0, 2, 1, 3, 4).reshape(16, 9, 3)
    second = rng.permuted(blocks, axis=1).reshape(4, 4, 3, 3, 3).transpose(0, 2, 1, 3, 4).reshape(12, 12, 3)
    assert np.array_equal(downscale(first, 4), downscale(second, 4))


@settings(max_examples=50, deadline=None)
@given(width=sizes, height=sizes, side=sizes)
def test_downscale_never_enlarges(width, height, side):
    small = downscale(np.full((height, width, 3), 7, np.uint8), side)
    assert max(small.shape[:2]) == min(side, max(width, height))
    assert (small == 7).all()
    if max(width, height) <= side:
        assert small.shape[:2] == (height, width)
