"""`flip_rotate`: an image the other way round, or the mirrored place of a part of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from medvista_ray.errors import ToolArgumentError
from medvista_ray.images.geometry import Box, Transform
from medvista_ray.tools.base import IMAGE_INDEX, IndexedImage, Picture, Tool, ToolContext, ToolCost, ToolOutput
from medvista_ray.tools.coordinates import UNIT, WHOLE_BOX, box_in_thousandths, read_box
from medvista_ray.tools.views import UPRIGHT, Orientation, View, lay_down
from medvista_ray.tools.zoom import cut_part

OPERATIONS: Mapping[str, Callable[[Orientation], Orientation]] = MappingProxyType(
    {
        "flip_horizontal": Orientation.then_flipped_horizontally,
        "flip_vertical": Orientation.then_flipped_vertically,
        "rotate_90": lambda orientation: orientation.then_turned(3),
        "rotate_180": lambda orientation: orientation.then_turned(2),
        "rotate_270": lambda orientation: orientation.then_turned(1),
    }
)
CONTRALATERAL = "contralateral"


class FlipRotate(Tool):
    """Mirror or turn.

    `contralateral` shows what lies at the mirrored place of a box: the box is mirrored left-right about the vertical
    middle of the image, that part is cut out, and mirrored itself, so that it can be laid beside the part that the box
    holds. It equals `flip_horizontal`, then a zoom to the same box; without a box it is `flip_horizontal`. The middle
    of the image stands for the midline of the patient, which is right for a centred axial or coronal image only.
    """

    name = "flip_rotate"
    description = (
        "Mirror an image (flip_horizontal: left-right, flip_vertical: top-bottom) or rotate it clockwise. "
        "contralateral: the part at the mirrored place of bbox, on the other side of the image's vertical middle, "
        "mirrored to compare."
    )
    cost = ToolCost.INLINE
    parameters: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {
            "operation": {"type": "string", "enum": [*OPERATIONS, CONTRALATERAL]},
            "bbox": {**WHOLE_BOX, "description": "[x0, y0, x1, y1], for contralateral only."},
            "unit": dict(UNIT),
            "image": dict(IMAGE_INDEX),
        },
        "required": ["operation"],
        "additionalProperties": False,
    }

    def run(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutput:
        """Return the image the other way round."""
        image = context.image(int(arguments.get("image", 0)))
        operation = arguments["operation"]
        if operation == CONTRALATERAL:
            return _contralateral(image, arguments)
        if "bbox" in arguments:
            raise ToolArgumentError(f"bbox is for {CONTRALATERAL}; {operation} takes the whole image")
        return ToolOutput(images=(_turn(image, OPERATIONS[operation]),))


def _contralateral(image: IndexedImage, arguments: Mapping[str, Any]) -> ToolOutput:
    if "bbox" not in arguments:
        return ToolOutput(images=(_turn(image, Orientation.then_flipped_horizontally),))
    x0, y0, x1, y1 = read_box(arguments["bbox"], arguments.get("unit", "thousandths"), image.record)
    width = image.record.ref.width
    mirrored: Box = (width - x1, y0, width - x0, y1)
    part = cut_part(image, mirrored)
    text = f"the part {box_in_thousandths(mirrored, image.record)} of image {image.index}, mirrored"
    if isinstance(part, View):
        return ToolOutput(text=text, images=(replace(part, orientation=part.orientation.then_flipped_horizontally()),))
    assert part.to_parent is not None, "a cut knows where it is from"
    pixels, to_parent = lay_down(part.pixels, part.to_parent, Orientation(is_flipped=True))
    return ToolOutput(text=text, images=(Picture(pixels=pixels, parent=image.index, to_parent=to_parent),))


def _turn(image: IndexedImage, turn: Callable[[Orientation], Orientation]) -> View | Picture:
    view = image.record.view
    if view is not None:
        return replace(view, orientation=turn(view.orientation))
    pixels, to_parent = lay_down(np.asarray(image.pixels()), Transform(), turn(UPRIGHT))
    return Picture(pixels=pixels, parent=image.index, to_parent=to_parent)
