"""`flip_rotate`: an image the other way round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from medvista_ray.images.geometry import Transform
from medvista_ray.tools.base import IMAGE_INDEX, IndexedImage, Picture, Tool, ToolContext, ToolCost, ToolOutput
from medvista_ray.tools.views import UPRIGHT, Orientation, lay_down

OPERATIONS: Mapping[str, Callable[[Orientation], Orientation]] = MappingProxyType(
    {
        "flip_horizontal": Orientation.then_flipped_horizontally,
        "flip_vertical": Orientation.then_flipped_vertically,
        "rotate_90": lambda orientation: orientation.then_turned(3),
        "rotate_180": lambda orientation: orientation.then_turned(2),
        "rotate_270": lambda orientation: orientation.then_turned(1),
    }
)


class FlipRotate(Tool):
    """Mirror or turn."""

    name = "flip_rotate"
    description = "Mirror an image (flip_horizontal: left-right, flip_vertical: top-bottom) or rotate it clockwise."
    cost = ToolCost.INLINE
    parameters: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {
            "operation": {"type": "string", "enum": list(OPERATIONS)},
            "image": dict(IMAGE_INDEX),
        },
        "required": ["operation"],
        "additionalProperties": False,
    }

    def run(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutput:
        """Return the image the other way round."""
        image = context.image(int(arguments.get("image", 0)))
        turn = OPERATIONS[arguments["operation"]]
        if image.record.view is None:
            return ToolOutput(images=(_turn_picture(image, turn(UPRIGHT)),))
        return ToolOutput(images=(replace(image.record.view, orientation=turn(image.record.view.orientation)),))


def _turn_picture(image: IndexedImage, orientation: Orientation) -> Picture:
    pixels, to_parent = lay_down(np.asarray(image.pixels()), Transform(), orientation)
    return Picture(pixels=pixels, parent=image.index, to_parent=to_parent)
