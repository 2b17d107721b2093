"""`enhance` equals the library's own calls, keeps the frame, and runs in a worker."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import data, exposure, filters, restoration
from test_tools_measure import shelf_of_file
from test_tools_views import GREY, call, make_shelf

from medvista_ray.errors import ToolArgumentError
from medvista_ray.images.codec import encode_png
from medvista_ray.tools.base import CallKey, ToolCost
from medvista_ray.tools.registry import load_tool
from medvista_ray.tools.runner import make_tool_runner
from medvista_ray.types.tool_calls import ToolCall

CELL = np.ascontiguousarray(data.cell()[200:330, 250:400])  # uint8 [130, 150], one channel
CALLS = {
    "clahe": ({"clip_limit": 0.03}, lambda v, _: exposure.equalize_adapthist(v, clip_limit=0.03)),
    "gamma": ({"gamma": 1.7}, lambda v, _: exposure.adjust_gamma(v, 1.7)),
    "unsharp": (
        {"radius": 3, "amount": 1.5},
        lambda v, axis: filters.unsharp_mask(v, radius=3, amount=1.5, channel_axis=axis),
    ),
    "denoise": ({"weight": 0.2}, lambda v, axis: restoration.denoise_tv_chambolle(v, weight=0.2, channel_axis=axis)),
}


def enhance(pixels, **arguments):
    height, width = pixels.shape[:2]
    shelf = shelf_of_file(encode_png(pixels), width=width, height=height, spacing_mm=(1.0, 1.0))
    _, (image,) = call(shelf, "enhance", **arguments)
    assert shelf.records[1].to_source == shelf.records[0].to_source
    return image.pixels


def to_grey_levels(values):
    return (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)


@pytest.mark.parametrize("method", CALLS)
def test_equals_the_call_of_the_library(method):
    options, expected = CALLS[method]
    grey = enhance(CELL, method=method, **options)
    assert np.array_equal(grey[..., 0], to_grey_levels(expected(CELL / 255, None)))
    assert (grey[..., 0] == grey[..., 2]).all()
    assert not np.array_equal(grey[..., 0], CELL)
    colour = enhance(GREY, method=method, **options)
    assert np.array_equal(colour, to_grey_levels(expected(GREY / 255, 2)))


@pytest.mark.parametrize("ridges", ["dark", "bright"])
def test_vesselness_equals_the_filter_of_sato(ridges):
    found = filters.sato(CELL / 255, sigmas=(1, 3, 5, 7, 9), black_ridges=ridges == "dark")
    pixels = enhance(CELL, method="vesselness", ridges=ridges)
    assert np.array_equal(pixels[..., 0], to_grey_levels(found / found.max()))
    assert pixels.max() == 255


def test_vesselness_finds_a_line_and_nothing_in_nothing():
    line = np.full((60, 60), 200, np.uint8)
    line[:, 29:32] = 60
    pixels = enhance(line, method="vesselness")[..., 0]
    assert pixels[30, 30] > 200
    assert pixels[30, 5] < 20
    assert enhance(np.full((40, 40), 9, np.uint8), method="vesselness").max() == 0


def test_a_large_image_is_shrunk_first_and_still_maps_to_its_source():
    wide = np.tile(np.arange(0, 250, dtype=np.uint8).repeat(8), (64, 1))
    shelf = shelf_of_file(encode_png(wide), width=2000, height=64, spacing_mm=(1.0, 1.0), view_size_px=5000)
    _, (image,) = call(shelf, "enhance", method="gamma", gamma=2)
    assert max(image.pixels.shape) == 1024
    assert shelf.records[1].to_source.box((0, 0, image.ref.width, image.ref.height)) == (0, 0, 2000, 64)


def test_an_option_of_another_method_is_refused():
    with pytest.raises(ToolArgumentError, match="gamma has no weight; it has gamma"):
        call(make_shelf(), "enhance", method="gamma", weight=1)


def test_it_runs_in_a_worker_and_gives_the_same_there():
    assert load_tool("enhance").cost is ToolCost.POOLED
    runner = make_tool_runner(["enhance"], timeout_s=60, num_workers=1)
    try:
        shelf = make_shelf(view_size_px=200)
        outcome = runner.run(ToolCall(name="enhance", arguments={"method": "clahe"}), shelf=shelf, key=CallKey())
        assert outcome.failure is None, outcome.text
        assert shelf.records[2].ref == call(make_shelf(view_size_px=200), "enhance", method="clahe")[1][0].ref
    finally:
        runner.close()
