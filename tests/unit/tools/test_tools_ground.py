"""`ground` finds what stands out, largest first, and says no more than it knows."""

from __future__ import annotations

import re

import numpy as np
import pytest
from test_tools_measure import shelf_of_file
from test_tools_views import call

from medvista_ray.images.codec import encode_png
from medvista_ray.tools.base import ToolCost
from medvista_ray.tools.ground import MOST_BOXES
from medvista_ray.tools.registry import load_tool

ROWS, COLUMNS = np.mgrid[:200, :400]
DISCS = [(60, 80, 30), (120, 250, 20), (150, 60, 12), (130, 282, 18)]  # row, column, radius; two of them touch


def draw(discs=DISCS, *, ground=40, ink=200):
    pixels = np.full((200, 400), ground, np.uint8)
    for row, column, radius in discs:
        pixels[np.hypot(ROWS - row, COLUMNS - column) <= radius] = ink
    return pixels


def propose(pixels, **arguments):
    height, width = pixels.shape[:2]
    shelf = shelf_of_file(encode_png(pixels), width=width, height=height, spacing_mm=None, view_size_px=2000)
    output, images = call(shelf, "ground", **arguments)
    boxes = [
        [int(number) for number in line.split(": [")[1].rstrip("]").split(", ")]
        for line in output.text.splitlines()
        if re.match(r"\d+: \[", line)
    ]
    return output.text, boxes, images


@pytest.mark.parametrize("objects", ["bright", "dark"])
def test_discs_have_their_boxes_largest_first(objects):
    pixels = draw() if objects == "bright" else 255 - draw()
    text, boxes, (image,) = propose(pixels, objects=objects)
    assert text.startswith("4 boxes, in thousandths:\n1: [")
    for box, (row, column, radius) in zip(boxes, sorted(DISCS, key=lambda disc: -disc[2]), strict=True):
        expected = [(column - radius) * 2.5, (row - radius) * 5, (column + radius + 1) * 2.5, (row + radius + 1) * 5]
        assert np.abs(np.subtract(box, expected)).max() <= 12, (
            box,
            expected,
        )  # two pixels: blur, and the line that parts
    assert image.pixels.shape == (200, 400, 3)
    assert (image.pixels == (255, 255, 0)).all(axis=2).sum() > 4 * 60


def test_the_list_is_capped_and_says_so():
    text, boxes, _ = propose(draw(), max_boxes=2)
    assert text.startswith("4 boxes, the 2 largest, in thousandths:")
    assert len(boxes) == 2
    many = [(10 + 20 * row, 10 + 20 * column, 6) for row in range(9) for column in range(19)]
    text, boxes, _ = propose(draw(many), max_boxes=MOST_BOXES)
    assert len(boxes) == MOST_BOXES
    assert len(text) <= 4000
    assert len(propose(draw(many))[1]) == 20


def test_small_things_are_left_out():
    assert len(propose(draw(), min_size=95)[1]) == 2
    assert len(propose(draw(), min_size=2)[1]) >= 4


@pytest.mark.parametrize("shape", [(50, 80), (1, 1), (1, 60), (3, 2)])
def test_nothing_stands_out_of_nothing(shape):
    text, boxes, images = propose(np.full(shape, 7, np.uint8))
    assert (text, boxes, images) == ("nothing stands out from the background", [], ())


def test_noise_and_tiny_images_do_not_break_it():
    rng = np.random.default_rng(0)
    for shape in ((2, 2), (5, 40), (64, 64), (1, 9)):
        text, boxes, images = propose(rng.integers(0, 256, shape).astype(np.uint8), min_size=2)
        assert text
        assert len(images) == bool(boxes)
        assert all(0 <= x0 < x1 <= 1000 and 0 <= y0 < y1 <= 1000 for x0, y0, x1, y1 in boxes), shape


def test_boxes_of_a_large_image_are_in_its_own_coordinates():
    large = np.kron(draw(), np.ones((6, 6), np.uint8))
    small_boxes, large_boxes = propose(draw())[1], propose(large)[1]
    assert np.abs(np.subtract(small_boxes, large_boxes)).max() <= 8


def test_it_says_that_it_takes_no_words():
    tool = load_tool("ground")
    assert "takes no words" in tool.description
    assert not any(
        schema.get("type") == "string" and "enum" not in schema for schema in tool.parameters["properties"].values()
    )
    assert tool.cost is ToolCost.POOLED
