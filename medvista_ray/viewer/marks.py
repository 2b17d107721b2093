"""What a tool call did, as marks on the image it was called on. Coordinates are pixels of that image.

A model may write anything as arguments: whatever cannot be drawn becomes a label. Knows the arguments of the built-in
tools; a tool of a user shows as its name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medvista_ray.types.messages import ImageRef
from medvista_ray.types.tool_calls import ToolCall

LABEL_SIZE = 0.066  # of the longest side of the image
_MAX_LABEL_CHARS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One call on one image."""

    number: int  # of the turn, from 1
    label: str
    failed: bool
    box: tuple[float, float, float, float] | None = None  # x, y, width, height
    line: tuple[float, float, float, float] | None = None  # x0, y0, x1, y1
    label_at: tuple[float, float] = (0.0, 0.0)  # baseline of the label of a box or line
    label_anchor: str = "start"  # start | end: where the label grows from


def image_index(call: ToolCall) -> int:
    """Return which image a call is about; the first one where it does not say."""
    index = call.arguments.get("image", 0)
    return index if isinstance(index, int) and not isinstance(index, bool) else 0


def make_mark(call: ToolCall, image: ImageRef, *, stored: ImageRef, number: int, failed: bool) -> Mark:
    """Place a call on the image it was called on; `stored` is what points in pixels count in."""
    arguments = call.arguments
    box = line = None
    if call.name == "zoom" and (numbers := _read_numbers(arguments.get("bbox"), 4)):
        box = _place_box(numbers, image)
    if call.name == "measure" and (ends := _read_ends(arguments.get("points"))):
        grid = (stored.width, stored.height) if arguments.get("unit") == "pixels" else (1000, 1000)
        line = _place_line(ends, image, grid)
    x, y, width, height = box or _bounds_of(line)
    is_right = x + width / 2 > image.width / 2
    return Mark(
        number=number,
        label=_make_label(call),
        failed=failed,
        box=box,
        line=line,
        label_at=(round(x + width if is_right else x, 2), _label_baseline(y, height, image)),
        label_anchor="end" if is_right else "start",
    )


def _bounds_of(line: tuple[float, float, float, float] | None) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = line or (0.0, 0.0, 0.0, 0.0)
    return min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0)


def _label_baseline(y: float, height: float, image: ImageRef) -> float:
    """Put a label above its mark, below it where there is no room, else inside of it."""
    line_height = LABEL_SIZE * max(image.width, image.height)
    if y > 1.4 * line_height:
        return round(y - 0.4 * line_height, 2)
    if y + height + 1.4 * line_height < image.height:
        return round(y + height + 1.1 * line_height, 2)
    return round(y + 1.1 * line_height, 2)


def _make_label(call: ToolCall) -> str:
    arguments = call.arguments
    if call.name == "window_level":
        if "preset" in arguments:
            return _shorten(f"window: {arguments['preset']}")
        return _shorten(f"window: {arguments.get('center', '?')} / {arguments.get('width', '?')}")
    if call.name == "flip_rotate":
        return _shorten(str(arguments.get("operation", call.name)).replace("_", " "))
    return _shorten(call.name)


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MAX_LABEL_CHARS else f"{text[: _MAX_LABEL_CHARS - 1]}…"


def _place_box(numbers: tuple[float, ...], image: ImageRef) -> tuple[float, float, float, float] | None:
    x0, x1 = (_clip(value) * image.width / 1000 for value in numbers[::2])
    y0, y1 = (_clip(value) * image.height / 1000 for value in numbers[1::2])
    if x1 <= x0 or y1 <= y0:
        return None
    return round(x0, 2), round(y0, 2), round(x1 - x0, 2), round(y1 - y0, 2)


def _place_line(
    ends: tuple[float, float, float, float], image: ImageRef, grid: tuple[int, int]
) -> tuple[float, float, float, float]:
    scale_x, scale_y = image.width / grid[0], image.height / grid[1]
    x0, y0, x1, y1 = ends
    return round(x0 * scale_x, 2), round(y0 * scale_y, 2), round(x1 * scale_x, 2), round(y1 * scale_y, 2)


def _clip(value: float) -> float:
    return min(1000.0, max(0.0, value))


def _read_ends(value: Any) -> tuple[float, float, float, float] | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    first, second = _read_numbers(value[0], 2), _read_numbers(value[1], 2)
    return None if first is None or second is None else (first[0], first[1], second[0], second[1])


def _read_numbers(value: Any, count: int) -> tuple[float, ...] | None:
    if not isinstance(value, list) or len(value) != count:
        return None
    if not all(isinstance(number, int | float) and abs(number) < 1e9 for number in value):  # NaN is not < 1e9
        return None
    return tuple(float(number) for number in value)


def describe_arguments(arguments: Mapping[str, Any]) -> str:
    """Write arguments as `bbox=[1, 2, 3, 4], image=0`."""
    return ", ".join(f"{name}={_round(value)}" for name, value in arguments.items())


def _round(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) and math.isfinite(value) else value
