"""Coordinates in calls: 0 to 1000 of width and height, or pixels by option. Their schemas and their reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from medvista_ray.errors import ToolArgumentError
from medvista_ray.images.geometry import Box
from medvista_ray.tools.base import ImageRecord

POINT: Mapping[str, Any] = MappingProxyType(
    {"type": "array", "items": {"type": "number", "minimum": 0}, "minItems": 2, "maxItems": 2}
)
BOX: Mapping[str, Any] = MappingProxyType(
    {"type": "array", "items": {"type": "number", "minimum": 0}, "minItems": 4, "maxItems": 4}
)
# A box of whole numbers, as `zoom` has it: shorter to write, and fine enough for what is shown.
WHOLE_BOX: Mapping[str, Any] = MappingProxyType(
    {
        "type": "array",
        "items": {"type": "integer", "minimum": 0},
        "minItems": 4,
        "maxItems": 4,
        "description": "[x0, y0, x1, y1]",
    }
)
UNIT: Mapping[str, Any] = MappingProxyType(
    {
        "type": "string",
        "enum": ["thousandths", "pixels"],
        "description": "Of coordinates: 0 to 1000 of width and height (default), or pixels of the image as it is "
        "stored, which may be larger than it is shown.",
    }
)


def read_point(point: Sequence[float], unit: str, record: ImageRecord) -> tuple[float, float]:
    """Return a point in pixels of `record.ref`; `ToolArgumentError` when it lies outside."""
    width, height = record.ref.width, record.ref.height
    limits = (1000.0, 1000.0) if unit == "thousandths" else (float(width), float(height))
    x, y = float(point[0]), float(point[1])
    if x > limits[0] or y > limits[1]:
        raise ToolArgumentError(f"the point {[x, y]} lies outside of the image: at most {list(limits)} {unit}")
    return (x * width / 1000, y * height / 1000) if unit == "thousandths" else (x, y)


def read_box(box: Sequence[float], unit: str, record: ImageRecord) -> Box:
    """Return a box in pixels of `record.ref`; `ToolArgumentError` when it is empty or reaches outside."""
    if box[2] <= box[0] or box[3] <= box[1]:
        raise ToolArgumentError(f"the box {list(box)} is empty: x0 < x1 and y0 < y1 are needed")
    return (*read_point(box[:2], unit, record), *read_point(box[2:], unit, record))


def box_in_thousandths(box: Sequence[float], record: ImageRecord) -> list[int]:
    """Return a box of pixels of `record.ref` as calls write it: whole numbers from 0 to 1000."""
    sides = (record.ref.width, record.ref.height) * 2
    return [min(1000, max(0, round(value * 1000 / side))) for value, side in zip(box, sides, strict=True)]
