"""Windows are their formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvista_ray.images.windowing import (
    DEFAULT_PRESET,
    PRESETS,
    apply_window,
    display_scale,
    is_on_display_scale,
    to_rgb,
)


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.integers(-2000, 4000), min_size=1, max_size=20),
    center=st.integers(-1000, 3000),
    width=st.integers(1, 4000),
)
def test_a_window_is_the_formula(values, center, width):
    shown = apply_window(np.array([values], np.int16), center=center, width=width)
    for value, grey in zip(values, shown[0].tolist(), strict=True):
        share = min(1.0, max(0.0, (value - (center - width / 2)) / width))
        assert abs(grey - math.floor(share * 255 + 0.5)) <= (0 if share in (0.0, 1.0) else 1)
        assert grey == round(share * 255) or abs(share * 255 % 1 - 0.5) < 1e-3


def test_the_ends_of_a_window_are_black_and_white():
    center, width = PRESETS["bone"]
    ends = np.array([[center - width / 2 - 1, center - width / 2, center, center + width / 2, center + width]])
    assert apply_window(ends, center=center, width=width).tolist() == [[0, 0, 128, 255, 255]]


@pytest.mark.parametrize("width", [0, -1])
def test_a_window_without_width_is_refused(width):
    with pytest.raises(ValueError, match="positive width"):
        apply_window(np.zeros((1, 1)), center=0, width=width)


def test_presets():
    assert DEFAULT_PRESET in PRESETS
    assert all(width > 0 for _, width in PRESETS.values())
    assert PRESETS["lung"] == (-600.0, 1500.0)
    with pytest.raises(TypeError):
        PRESETS["lung"] = (0.0, 1.0)


def test_to_rgb_repeats_grey():
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert to_rgb(grey).shape == (2, 3, 3)
    assert all(np.array_equal(to_rgb(grey)[..., channel], grey) for channel in range(3))


def test_the_display_scale_is_told_from_other_values():
    values = np.random.default_rng(0).gamma(2.0, 300.0, (64, 80)).astype(np.float32)
    shown = display_scale(values)
    assert np.percentile(shown, [1.0, 99.5]) == pytest.approx([-160, 240], abs=1e-3)
    assert is_on_display_scale(shown)
    assert not is_on_display_scale(values)
    assert not is_on_display_scale(np.rint(shown).astype(np.int16))
