"""`window_level`: the stored values of an image through another window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from medvista_ray.errors import ToolArgumentError
from medvista_ray.images.windowing import PRESETS
from medvista_ray.tools.base import IMAGE_INDEX, Tool, ToolContext, ToolCost, ToolOutput
from medvista_ray.tools.views import Window

_LIMIT = 1_000_000  # of centre and width, in stored values
EIGHT_BIT_NOTE = "this image has 8 bits: a window changes nothing"


class WindowLevel(Tool):
    """Re-window. Our choice: an 8-bit image comes back unchanged, with a note."""

    name = "window_level"
    description = "Show an image through a window: a preset, or center and width in stored values (HU for CT)."
    cost = ToolCost.INLINE
    parameters: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {
            "preset": {"type": "string", "enum": list(PRESETS)},
            "center": {"type": "number", "minimum": -_LIMIT, "maximum": _LIMIT},
            "width": {"type": "number", "exclusiveMinimum": 0, "maximum": _LIMIT},
            "image": dict(IMAGE_INDEX),
        },
        "additionalProperties": False,
    }

    def run(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutput:
        """Return the same part of the image through the window."""
        window = _read_window(arguments)
        record = context.image(int(arguments.get("image", 0))).record
        if record.view is None:
            raise ToolArgumentError(f"image {record.index} was drawn by a tool; choose an image it was made from")
        if record.view.window is None:
            return ToolOutput(text=EIGHT_BIT_NOTE, images=(record.view,))
        return ToolOutput(images=(replace(record.view, window=window),))


def _read_window(arguments: Mapping[str, Any]) -> Window:
    given = arguments.keys() & {"preset", "center", "width"}
    if given == {"preset"}:
        center, width = PRESETS[arguments["preset"]]
        return Window(center=center, width=width)
    if given == {"center", "width"}:
        return Window(center=float(arguments["center"]), width=float(arguments["width"]))
    raise ToolArgumentError("give either preset, or center and width")
