"""`measure`: lengths, areas and angles from the spacing of the source; what its stored values are in a region."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from medvista_ray.errors import ToolArgumentError
from medvista_ray.images.geometry import Box
from medvista_ray.images.windowing import is_on_display_scale
from medvista_ray.tools import regions
from medvista_ray.tools.base import IMAGE_INDEX, ImageRecord, IndexedImage, Tool, ToolContext, ToolCost, ToolOutput
from medvista_ray.tools.coordinates import BOX, POINT, UNIT, read_box, read_point
from medvista_ray.types.messages import NPY_MIME

KINDS = ("length", "area", "angle", "intensity", "shape")
_MAX_POINTS = 64
_SQUARE_PIXELS = (1.0, 1.0)


class Measure(Tool):
    """Measure.

    The kinds: `length` of the path through points; `area` of a polygon, a box or a mask; `angle` at the second of three
    points; `intensity` and `shape` of a box or a mask.
    """

    name = "measure"
    description = (
        "Measure in millimetres: length through points (default); area of a polygon of points, of bbox or of a mask; "
        "angle at the second of three points; shape of a mask. Or intensity, in HU for CT: mean, std, min, max in bbox "
        "or in a mask."
    )
    cost = ToolCost.INLINE
    example: ClassVar[Mapping[str, Any] | None] = {"kind": "intensity", "bbox": [100, 100, 600, 600]}
    parameters: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {
            "kind": {
                "type": "string",
                "enum": list(KINDS),
                "description": (
                    "intensity is in HU for CT, in grey levels 0 to 255 for 8 bits, else on the display scale: "
                    "-160 is percentile 1 of the whole image, 240 is percentile 99.5."
                ),
            },
            "points": {
                "type": "array",
                "items": dict(POINT),
                "minItems": 2,
                "maxItems": _MAX_POINTS,
                "description": "[[x, y], [x, y]]",
            },
            "bbox": dict(BOX),
            "mask_of": {**IMAGE_INDEX, "description": "The region is the object that is marked in this image."},
            "unit": dict(UNIT),
            "image": dict(IMAGE_INDEX),
        },
        "additionalProperties": False,
    }

    def run(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutput:
        """Return a text such as `12.3 mm`."""
        given = sorted(arguments.keys() & {"points", "bbox", "mask_of"})
        kind = arguments.get("kind", "length")
        if kind in ("length", "angle") and given != ["points"]:
            raise ToolArgumentError(f"{kind} needs points and nothing else")
        if len(given) != 1:
            raise ToolArgumentError("give one of points, bbox and mask_of")
        image = _read_image(arguments, context)
        if given == ["points"]:
            return ToolOutput(text=_measure_points(kind, arguments, image.record))
        if kind == "intensity":
            return ToolOutput(text=_measure_intensity(_read_region(arguments, image), image))
        region, spacing_mm = _read_region(arguments, image), _spacing(image.record, kind)
        if kind == "shape":
            return ToolOutput(text=_write_shape(regions.compute_shape(region, spacing_mm)))
        return ToolOutput(text=f"{regions.mask_area_mm2(region, spacing_mm):.1f} mm2")


def _read_image(arguments: Mapping[str, Any], context: ToolContext) -> IndexedImage:
    """Return the image that is measured; a mask belongs to the source of the image that shows it."""
    if "mask_of" not in arguments:
        return context.image(int(arguments.get("image", 0)))
    masked = context.image(int(arguments["mask_of"]))
    if "image" in arguments:
        image = context.image(int(arguments["image"]))
        if image.record.source.digest != masked.record.source.digest:
            raise ToolArgumentError(f"the mask of image {masked.index} is not from the source of image {image.index}")
    return masked


def _measure_points(kind: str, arguments: Mapping[str, Any], record: ImageRecord) -> str:
    unit = arguments.get("unit", "thousandths")
    points = [record.to_source.point(*read_point(point, unit, record)) for point in arguments["points"]]
    if kind == "length":
        return f"{regions.path_length_mm(points, _spacing(record, kind)):.1f} mm"
    if kind == "angle":
        if len(points) != 3:
            raise ToolArgumentError("an angle has three points, its corner the second")
        angle = regions.angle_deg(points, record.spacing_mm or _SQUARE_PIXELS)
        if angle is None:
            raise ToolArgumentError("two of the points are the same: there is no angle")
        note = "" if record.spacing_mm else " if pixels are square: their spacing is not known"
        return f"{angle:.1f} degrees{note}"
    if kind != "area":
        raise ToolArgumentError(f"{kind} is of bbox or mask_of, not of points")
    if len(points) < 3:
        raise ToolArgumentError("an area has three points or more")
    return f"{regions.polygon_area_mm2(points, _spacing(record, kind)):.1f} mm2"


def _measure_intensity(region: np.ndarray, image: IndexedImage) -> str:
    values = image.source_values()
    stats = regions.compute_statistics(values, region)
    numbers = f"mean {stats.mean:.1f}, std {stats.std:.1f}, min {stats.low:.6g}, max {stats.high:.6g}"
    return f"{numbers}, n {stats.num_pixels} ({_value_unit(image.record, values)})"


def _value_unit(record: ImageRecord, values: np.ndarray) -> str:
    """Name the unit of source values; an array that was given as one, without a header, may be on any scale."""
    if record.source.mime != NPY_MIME:
        return "grey levels 0 to 255"
    if record.source.modality == "CT":
        return "HU"
    is_rescaled = bool(record.header) or record.place is not None or is_on_display_scale(values)
    return "display scale" if is_rescaled else "stored values"


def _read_region(arguments: Mapping[str, Any], image: IndexedImage) -> np.ndarray:
    """Return the region as a mask of the source, bool [H, W] with at least one pixel."""
    if "mask_of" in arguments:
        mask = image.source_mask()
    else:
        box = read_box(arguments["bbox"], arguments.get("unit", "thousandths"), image.record)
        source = image.record.source
        mask = _fill_box(image.record.to_source.box(box), width=source.width, height=source.height)
    if not mask.any():
        raise ToolArgumentError("the region holds no pixel of the source")
    return mask


def _fill_box(box: Box, *, width: int, height: int) -> np.ndarray:
    """Return a box, rounded to whole pixels as `zoom` does it, as bool [height, width]."""
    mask = np.zeros((height, width), np.bool_)
    x0, y0, x1, y1 = (max(0, round(value)) for value in box)
    mask[y0:y1, x0:x1] = True
    return mask


def _spacing(record: ImageRecord, kind: str) -> tuple[float, float]:
    if record.spacing_mm is None:
        raise ToolArgumentError(f"the pixel spacing of image {record.index} is not known: no {kind} in mm")
    return record.spacing_mm


def _write_shape(shape: regions.Shape) -> str:
    perimeter = "" if shape.perimeter_mm is None else f", perimeter {shape.perimeter_mm:.1f} mm"
    axes = f"major axis {shape.major_axis_mm:.1f} mm, minor axis {shape.minor_axis_mm:.1f} mm"
    return f"area {shape.area_mm2:.1f} mm2, {axes}{perimeter}"
