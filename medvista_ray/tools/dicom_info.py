"""`dicom_info`: what the header of an image says, out of the allow-list that a task may hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from medvista_ray.errors import ToolArgumentError
from medvista_ray.tools.base import IMAGE_INDEX, Tool, ToolContext, ToolCost, ToolOutput

_MAX_CHARS = 64  # of a value that is text


class DicomInfo(Tool):
    """Read the header that came with the source of an image. Opens no file: what is not in the task cannot be told."""

    name = "dicom_info"
    description = "Tell what the DICOM header of an image says of its acquisition; nothing in it names a patient."
    cost = ToolCost.INLINE
    parameters: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {"image": dict(IMAGE_INDEX)},
        "additionalProperties": False,
    }

    def run(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutput:
        """Return a line for each field, such as `slice_thickness_mm: 5`."""
        record = context.image(int(arguments.get("image", 0))).record
        if not record.header:
            raise ToolArgumentError(f"image {record.index} has no DICOM header")
        return ToolOutput(text="\n".join(f"{name}: {_write(value)}" for name, value in record.header.items()))


def _write(value: str | int | float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)[:_MAX_CHARS]
