"""Marks stand where the call was, on an image of any size; nonsense becomes a label, never an error."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvista_ray.types.messages import ImageRef
from medvista_ray.types.tool_calls import ToolCall
from medvista_ray.viewer.marks import Mark, describe_arguments, image_index, make_mark

IMAGE = ImageRef(digest="a" * 64, width=400, height=200)
STORED = ImageRef(digest="b" * 64, width=800, height=400)  # IMAGE is a view of it


def mark(name: str, **arguments: object) -> Mark:
    return make_mark(ToolCall(name=name, arguments=arguments), IMAGE, stored=STORED, number=1, failed=False)


def test_a_zoom_is_a_box_in_thousandths() -> None:
    assert mark("zoom", bbox=[250, 500, 750, 1000]).box == (100.0, 100.0, 200.0, 100.0)


def test_a_measurement_is_a_line_in_thousandths_or_pixels() -> None:
    assert mark("measure", points=[[0, 0], [1000, 500]]).line == (0.0, 0.0, 400.0, 100.0)
    assert mark("measure", points=[[10, 20], [30, 40]], unit="pixels").line == (5.0, 10.0, 15.0, 20.0)


@pytest.mark.parametrize(
    ("name", "arguments", "label"),
    [
        ("window_level", {"preset": "bone"}, "window: bone"),
        ("window_level", {"center": 40, "width": 400}, "window: 40 / 400"),
        ("flip_rotate", {"operation": "flip_horizontal"}, "flip horizontal"),
        ("segment\nlesion", {}, "segment lesion"),
        ("x" * 99, {}, "x" * 29 + "…"),
    ],
)
def test_labels(name: str, arguments: dict[str, object], label: str) -> None:
    assert mark(name, **arguments).label == label


@pytest.mark.parametrize(
    "bbox",
    [
        None,
        [],
        [1, 2, 3],
        [1, 2, 3, "4"],
        [5, 5, 5, 9],
        [9, 9, 1, 1],
        [1, 2, math.nan, 4],
        {"x": 1},
        3,
        [2000, 0, 3000, 9],
    ],
)
def test_a_box_that_is_none_is_only_a_label(bbox: object) -> None:
    assert mark("zoom", bbox=bbox).box is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from(["zoom", "measure", "window_level", "flip_rotate", "other"]),
    st.dictionaries(
        st.sampled_from(["bbox", "points", "unit", "preset", "center", "width", "operation", "image"]), json_values
    ),
)
def test_any_arguments_make_a_mark_of_finite_numbers(name: str, arguments: dict[str, object]) -> None:
    call = ToolCall(name=name, arguments=arguments)
    made = make_mark(call, IMAGE, stored=STORED, number=1, failed=True)
    assert all(math.isfinite(number) for number in (*(made.box or ()), *(made.line or ())))
    assert isinstance(image_index(call), int)
    assert isinstance(describe_arguments(arguments), str)
