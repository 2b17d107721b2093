"""`measure`: the length between two points in millimetres, from the spacing of the source."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from medvista_ray.errors import ToolArgumentError
from medvista_ray.tools.base import IMAGE_INDEX, ImageRecord, Tool, ToolContext, ToolCost, ToolOutput

_POINT = {"type": "array", "items": {"type": "number", "minimum": 0}, "minItems": 2, "maxItems": 2}


class Measure(Tool):
    """Measure a distance."""

    name = "measure"
    description = "Measure the distance between two points in millimetres."
    cost = ToolCost.INLINE
    parameters: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {
            "points": {
                "type": "array",
                "items": _POINT,
                "minItems": 2,
                "maxItems": 2,
                "description": "[[x, y], [x, y]]",
            },
            "unit": {
                "type": "string",
                "enum": ["thousandths", "pixels"],
                "description": "Of the points: 0 to 1000 of width and height (default), or pixels of the image as it "
                "is stored, which may be larger than it is shown.",
            },
            "image": dict(IMAGE_INDEX),
        },
        "required": ["points"],
        "additionalProperties": False,
    }

    def run(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutput:
        """Return a text such as `12.3 mm`."""
        record = context.image(int(arguments.get("image", 0))).record
        unit = arguments.get("unit", "thousandths")
        ends = [record.to_source.point(*_to_pixels(point, unit, record)) for point in arguments["points"]]
        if record.spacing_mm is None:
            raise ToolArgumentError(f"the pixel spacing of image {record.index} is not known: no length in mm")
        row_mm, column_mm = record.spacing_mm
        (x0, y0), (x1, y1) = ends
        return ToolOutput(text=f"{math.hypot((x1 - x0) * column_mm, (y1 - y0) * row_mm):.1f} mm")


def _to_pixels(point: Sequence[float], unit: str, record: ImageRecord) -> tuple[float, float]:
    width, height = record.ref.width, record.ref.height
    limits = (1000.0, 1000.0) if unit == "thousandths" else (float(width), float(height))
    x, y = float(point[0]), float(point[1])
    if x > limits[0] or y > limits[1]:
        raise ToolArgumentError(f"the point {[x, y]} lies outside of the image: at most {list(limits)} {unit}")
    return (x * width / 1000, y * height / 1000) if unit == "thousandths" else (x, y)
