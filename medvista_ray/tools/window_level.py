"""`window_level`: the stored values of an image through another window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from medvista_ray.errors import ToolArgumentError
from medvista_ray.images.geometry import Box
from medvista_ray.images.windowing import PRESETS
from medvista_ray.tools.base import IMAGE_INDEX, IndexedImage, Tool, ToolContext, ToolCost, ToolOutput
from medvista_ray.tools.views import Window, whole_pixels

_LIMIT = 1_000_000  # of centre and width, in stored values
EIGHT_BIT_NOTE = "this image has 8 bits: a window changes nothing"


class WindowLevel(Tool):
    """Re-window. Our choices: an 8-bit image comes back unchanged, with a note; percentiles are of the part shown."""

    name = "window_level"
    description = (
        "Show an image through a window: a preset, or center and width, or two percentiles of the values in the part "
        "that the image shows. Presets, center and width are in HU for CT, else on the display scale."
    )
    cost = ToolCost.INLINE
    parameters: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {
            "preset": {
                "type": "string",
                "enum": list(PRESETS),
                "description": (
                    "Made for HU. The display scale of other images: -160 is percentile 1 of the whole image, 240 is "
                    "percentile 99.5; an image of 8 bits has no window."
                ),
            },
            "center": {"type": "number", "minimum": -_LIMIT, "maximum": _LIMIT},
            "width": {"type": "number", "exclusiveMinimum": 0, "maximum": _LIMIT},
            "percentiles": {
                "type": "array",
                "items": {"type": "number", "minimum": 0, "maximum": 100},
                "minItems": 2,
                "maxItems": 2,
                "description": "[low, high], shown as black and white.",
            },
            "image": dict(IMAGE_INDEX),
        },
        "additionalProperties": False,
    }

    def run(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutput:
        """Return the same part of the image through the window."""
        image = context.image(int(arguments.get("image", 0)))
        view = image.record.view
        window = _read_window(arguments)
        if view is None:
            raise ToolArgumentError(f"image {image.index} was drawn by a tool; choose an image it was made from")
        if view.window is None:
            return ToolOutput(text=EIGHT_BIT_NOTE, images=(view,))
        if window is not None:
            return ToolOutput(images=(replace(view, window=window),))
        window = _window_between(arguments["percentiles"], image, view.box)
        text = f"center {window.center:.6g}, width {window.width:.6g}"
        return ToolOutput(text=text, images=(replace(view, window=window),))


def _read_window(arguments: Mapping[str, Any]) -> Window | None:
    """Return the window that a call says itself; None where the image decides."""
    given = arguments.keys() & {"preset", "center", "width", "percentiles"}
    if given == {"preset"}:
        center, width = PRESETS[arguments["preset"]]
        return Window(center=center, width=width)
    if given == {"center", "width"}:
        return Window(center=float(arguments["center"]), width=float(arguments["width"]))
    if given == {"percentiles"}:
        return None
    raise ToolArgumentError("give either preset, or center and width, or percentiles")


def _window_between(percentiles: Sequence[float], image: IndexedImage, box: Box | None) -> Window:
    """Return the window from one percentile to the other of the source values in a box."""
    if percentiles[0] >= percentiles[1]:
        raise ToolArgumentError(f"the percentiles {list(percentiles)} are not in order: low < high is needed")
    values = image.source_values()
    if box is not None:
        x0, y0, x1, y1 = whole_pixels(box, width=values.shape[1], height=values.shape[0])
        values = values[y0:y1, x0:x1]
    low, high = (float(value) for value in np.percentile(values, [float(value) for value in percentiles]))
    if high <= low:
        raise ToolArgumentError(f"both percentiles are {low:.6g}: there is no window between them")
    return Window(center=(low + high) / 2, width=high - low)
