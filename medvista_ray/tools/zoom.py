"""`zoom`: a part of an image, cut from its source at full resolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from medvista_ray.images.geometry import Box, crop_and_scale
from medvista_ray.tools.base import IMAGE_INDEX, IndexedImage, Picture, Tool, ToolContext, ToolCost, ToolOutput
from medvista_ray.tools.coordinates import UNIT, WHOLE_BOX, read_box
from medvista_ray.tools.views import View, whole_pixels


class Zoom(Tool):
    """Crop and enlarge."""

    name = "zoom"
    description = "Look closer at a part of an image, at full resolution."
    cost = ToolCost.INLINE
    parameters: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {"bbox": dict(WHOLE_BOX), "unit": dict(UNIT), "image": dict(IMAGE_INDEX)},
        "required": ["bbox"],
        "additionalProperties": False,
    }

    def run(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutput:
        """Return the part of the image."""
        image = context.image(int(arguments.get("image", 0)))
        box = read_box(arguments["bbox"], arguments.get("unit", "thousandths"), image.record)
        return ToolOutput(images=(cut_part(image, box),))


def cut_part(image: IndexedImage, box: Box) -> View | Picture:
    """Return a part of an image, box in its pixels: a view of the source, or a cut of what a tool painted."""
    if image.record.view is None:
        return _crop_picture(image, box)
    source_box = image.record.to_source.box(box)
    whole_pixels(source_box, width=image.record.source.width, height=image.record.source.height)
    return replace(image.record.view, box=source_box)


def _crop_picture(image: IndexedImage, box: Box) -> Picture:
    """Cut from the pixels that a tool painted, since the source does not have them."""
    pixels = image.pixels()
    whole = whole_pixels(box, width=pixels.shape[1], height=pixels.shape[0])
    crop, to_parent = crop_and_scale(pixels, whole, max(pixels.shape[:2]))
    return Picture(pixels=crop, parent=image.index, to_parent=to_parent)
