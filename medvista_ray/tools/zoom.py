"""`zoom`: a part of an image, cut from its source at full resolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from medvista_ray.errors import ToolArgumentError
from medvista_ray.images.geometry import Box, box_from_thousandths, crop_and_scale
from medvista_ray.tools.base import IMAGE_INDEX, IndexedImage, Picture, Tool, ToolContext, ToolCost, ToolOutput
from medvista_ray.tools.views import whole_pixels


class Zoom(Tool):
    """Crop and enlarge."""

    name = "zoom"
    description = "Look closer at a part of an image, at full resolution."
    cost = ToolCost.INLINE
    parameters: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {
            "bbox": {
                "type": "array",
                "items": {"type": "integer", "minimum": 0, "maximum": 1000},
                "minItems": 4,
                "maxItems": 4,
                "description": "[x0, y0, x1, y1] from 0 to 1000 of the image's width and height.",
            },
            "image": dict(IMAGE_INDEX),
        },
        "required": ["bbox"],
        "additionalProperties": False,
    }

    def run(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutput:
        """Return the part of the image."""
        image = context.image(int(arguments.get("image", 0)))
        bbox = [int(value) for value in arguments["bbox"]]
        if bbox[2] <= bbox[0] or bbox[3] <= bbox[1]:
            raise ToolArgumentError(f"the box {bbox} is empty: x0 < x1 and y0 < y1 are needed")
        box = box_from_thousandths(bbox, image.record.ref.width, image.record.ref.height)
        if image.record.view is None:
            return ToolOutput(images=(_crop_picture(image, box),))
        source_box = image.record.to_source.box(box)
        whole_pixels(source_box, width=image.record.source.width, height=image.record.source.height)
        return ToolOutput(images=(replace(image.record.view, box=source_box),))


def _crop_picture(image: IndexedImage, box: Box) -> Picture:
    """Cut from the pixels that a tool painted, since the source does not have them."""
    pixels = image.pixels()
    whole = whole_pixels(box, width=pixels.shape[1], height=pixels.shape[0])
    crop, to_parent = crop_and_scale(pixels, whole, max(pixels.shape[:2]))
    return Picture(pixels=crop, parent=image.index, to_parent=to_parent)
