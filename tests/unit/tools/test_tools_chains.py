"""Chains of tools: where a place of the last image lies in the source. Colours of the source say where they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tools_views import call

from medvista_ray.errors import ToolArgumentError
from medvista_ray.images.codec import encode_png, make_ref
from medvista_ray.images.geometry import mask_from_source, mask_to_source
from medvista_ray.images.store import MemoryBlobCache
from medvista_ray.tools.renderer import ViewRenderer
from medvista_ray.tools.shelf import ImageShelf
from medvista_ray.types.messages import Task

WIDTH, HEIGHT, STEP = 84, 60, 3
SPACING = (0.5, 0.25)
COLUMNS, ROWS = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
PLACES = np.stack([COLUMNS * STEP, ROWS * STEP, np.full_like(ROWS, 77)], axis=2).astype(np.uint8)
DATA = encode_png(PLACES)


def make_place_shelf(view_size_px=96):
    blobs = MemoryBlobCache()
    blobs.put(DATA)
    ref = make_ref(DATA, mime="image/png", width=WIDTH, height=HEIGHT, spacing_mm=SPACING)
    task = Task(task_id="t", family="f", question="q", images=(ref,))
    return ImageShelf(task, renderer=ViewRenderer(blobs, view_size_px=view_size_px))


def boxes(limit_x, limit_y):
    def side(limit):
        return st.lists(st.integers(0, limit), min_size=2, max_size=2, unique=True).map(sorted)

    return st.builds(lambda x, y: [x[0], y[0], x[1], y[1]], side(limit_x), side(limit_y))


BOXES = boxes(1000, 1000)
CALLS = st.one_of(
    BOXES.map(lambda bbox: ("zoom", {"bbox": bbox})),
    BOXES.map(lambda bbox: ("flip_rotate", {"operation": "contralateral", "bbox": bbox})),
    st.sampled_from(["flip_horizontal", "flip_vertical", "rotate_90", "rotate_180", "rotate_270", "contralateral"]).map(
        lambda operation: ("flip_rotate", {"operation": operation})
    ),
    st.just(("enhance", {"method": "gamma", "gamma": 1.0})),
)
CHAINS = st.lists(CALLS, min_size=1, max_size=4)


def play(chain):
    """Run the calls one on the result of the other; return the shelf. A call that makes no sense ends the chain."""
    shelf = make_place_shelf()
    for name, arguments in chain:
        try:
            call(shelf, name, image=len(shelf.records) - 1, **arguments)
        except ToolArgumentError:
            break
    return shelf


@given(chain=CHAINS)
@settings(max_examples=40, deadline=None)
def test_every_pixel_shows_the_place_that_it_maps_to(chain):
    shelf = play(chain)
    record = shelf.records[-1]
    if record.index == 0:
        return
    pixels = shelf.context(None).image(record.index).pixels().astype(float)
    height, width = pixels.shape[:2]
    assert (width, height) == (record.ref.width, record.ref.height)
    # Away from the border, where a magnified pixel has no neighbour to blend with.
    for row in range(height // 8, height - height // 8, max(1, height // 6)):
        for column in range(width // 8, width - width // 8, max(1, width // 6)):
            x, y = record.to_source.point(column + 0.5, row + 0.5)
            shown = pixels[row, column, :2] / STEP + 0.5
            assert np.abs(shown - (x, y)).max() <= 0.5 + 1e-6, (chain, row, column)


@given(chain=CHAINS, box=BOXES)
@settings(max_examples=40, deadline=None)
def test_boxes_and_points_go_there_and_back(chain, box):
    record = play(chain).records[-1]
    size = (record.ref.width, record.ref.height) * 2
    mine = [value * side / 1000 for value, side in zip(box, size, strict=True)]
    at_source = record.to_source.box(mine)
    assert at_source[0] >= -1e-9
    assert at_source[1] >= -1e-9
    assert at_source[2] <= WIDTH + 1e-9
    assert at_source[3] <= HEIGHT + 1e-9
    assert record.to_source.inverse_box(at_source) == pytest.approx(mine, abs=1e-6)
    x, y = record.to_source.point(*mine[:2])
    assert record.to_source.inverse_point(x, y) == pytest.approx(mine[:2], abs=1e-6)


@given(chain=CHAINS, ends=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=2))
@settings(max_examples=40, deadline=None)
def test_a_length_is_the_same_in_every_image_of_a_chain(chain, ends):
    shelf = play(chain)
    record = shelf.records[-1]
    points = [[x * record.ref.width, y * record.ref.height] for x, y in ends]
    (x0, y0), (x1, y1) = (record.to_source.point(*point) for point in points)
    expected = np.hypot((x1 - x0) * SPACING[1], (y1 - y0) * SPACING[0])
    for index, there in ((record.index, points), (0, [(x0, y0), (x1, y1)])):
        inside = [[min(max(x, 0), WIDTH * 9), min(max(y, 0), HEIGHT * 9)] for x, y in there]
        limits = shelf.records[index].ref
        inside = [[min(x, limits.width), min(y, limits.height)] for x, y in inside]
        output, _ = call(shelf, "measure", points=inside, unit="pixels", image=index)
        assert float(output.text.removesuffix(" mm")) == pytest.approx(expected, abs=0.051)


@given(chain=CHAINS, seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_mask_comes_back_pixel_for_pixel(chain, seed):
    record = play(chain).records[-1]
    shown = np.array(record.to_source.box((0, 0, record.ref.width, record.ref.height)))
    # A zoom of a painted picture may cut through a source pixel, which then comes back whole or not at all.
    (x0, y0), (x1, y1) = np.ceil(shown[:2] - 1e-6).astype(int), np.floor(shown[2:] + 1e-6).astype(int)
    mask = np.random.default_rng(seed).random((HEIGHT, WIDTH)) < 0.4
    there = mask_from_source(mask, record.to_source, width=record.ref.width, height=record.ref.height)
    back = mask_to_source(there, record.to_source, width=WIDTH, height=HEIGHT)
    assert np.array_equal(back[y0:y1, x0:x1], mask[y0:y1, x0:x1])
    outside = back.copy()
    outside[max(0, y0 - 1) : y1 + 1, max(0, x0 - 1) : x1 + 1] = False
    assert not outside.any()


@given(outer=boxes(WIDTH, HEIGHT), data=st.data())
@settings(max_examples=40, deadline=None)
def test_two_nested_zooms_of_whole_pixels_map_exactly(outer, data):
    shelf = make_place_shelf()
    call(shelf, "zoom", bbox=outer, unit="pixels")
    first = shelf.records[1]
    assert first.view.box == tuple(outer)
    assert first.to_source.box((0, 0, first.ref.width, first.ref.height)) == pytest.approx(outer, abs=1e-9)
    inner = data.draw(boxes(first.ref.width, first.ref.height))
    asked = first.to_source.box(inner)
    try:
        call(shelf, "zoom", bbox=inner, unit="pixels", image=1)
    except ToolArgumentError:
        return
    second = shelf.records[2]
    shown = second.to_source.box((0, 0, second.ref.width, second.ref.height))
    whole = [min(max(round(value), 0), limit) for value, limit in zip(asked, (WIDTH, HEIGHT) * 2, strict=True)]
    assert shown == pytest.approx(whole, abs=1e-9)
    assert np.abs(np.subtract(shown, asked)).max() <= 0.5 + 1e-9


def test_zoom_shows_the_pixels_of_a_known_crop():
    shelf = make_place_shelf(view_size_px=30)
    _, (image,) = call(shelf, "zoom", bbox=[10, 20, 40, 40], unit="pixels")
    assert np.array_equal(image.pixels, PLACES[20:40, 10:40])
    _, (same,) = call(shelf, "zoom", bbox=[120, 334, 476, 666])
    assert np.array_equal(same.pixels, PLACES[20:40, 10:40])


def test_a_box_beyond_the_image_is_refused_in_both_units():
    shelf = make_place_shelf()
    for arguments in ({"bbox": [0, 0, 1001, 9]}, {"bbox": [0, 0, 85, 9], "unit": "pixels"}):
        with pytest.raises(ToolArgumentError, match="outside"):
            call(shelf, "zoom", **arguments)


@given(box=boxes(WIDTH, HEIGHT))
@settings(max_examples=40, deadline=None)
def test_contralateral_equals_a_flip_and_then_a_zoom(box):
    shelf = make_place_shelf()
    call(shelf, "flip_rotate", operation="flip_horizontal")
    (_, (one,)) = call(shelf, "flip_rotate", operation="contralateral", bbox=box, unit="pixels")
    (_, (other,)) = call(shelf, "zoom", bbox=box, unit="pixels", image=1)
    assert np.array_equal(one.pixels, other.pixels)
    x0, _, x1, _ = box
    shown = shelf.records[2].to_source.box((0, 0, one.ref.width, one.ref.height))
    assert (shown[0], shown[2]) == pytest.approx((WIDTH - x1, WIDTH - x0))


@given(box=boxes(WIDTH, HEIGHT))
@settings(max_examples=40, deadline=None)
def test_contralateral_twice_is_the_part_itself(box):
    shelf = make_place_shelf()
    call(shelf, "flip_rotate", operation="contralateral")
    (_, (back,)) = call(shelf, "flip_rotate", operation="contralateral", bbox=box, unit="pixels", image=1)
    (_, (part,)) = call(shelf, "zoom", bbox=box, unit="pixels")
    assert back.ref == part.ref
    assert shelf.records[2].to_source == shelf.records[3].to_source
    call(shelf, "flip_rotate", operation="contralateral", image=1)
    assert shelf.records[4].ref == shelf.records[0].ref


def test_contralateral_of_a_painted_picture_and_what_it_says():
    shelf = make_place_shelf()
    call(shelf, "enhance", method="gamma", gamma=1.0)
    output, (image,) = call(shelf, "flip_rotate", operation="contralateral", bbox=[0, 0, 250, 500], image=1)
    assert output.text == "the part [750, 0, 1000, 500] of image 1, mirrored"
    left, right = image.pixels[5, 2, 0] / STEP, image.pixels[5, -3, 0] / STEP
    assert left > right > 60
    with pytest.raises(ToolArgumentError, match="contralateral"):
        call(shelf, "flip_rotate", operation="rotate_90", bbox=[0, 0, 9, 9])
