"""`get_slice`: another slice of a volume, in any of the three planes, or the maximum of several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from medvista_ray.errors import ToolArgumentError
from medvista_ray.images.volumes import EDGES, cut_slice, num_slices, projected_slices
from medvista_ray.tools.base import IMAGE_INDEX, Slice, SlicePlace, Tool, ToolContext, ToolCost, ToolOutput
from medvista_ray.types.messages import Plane, VolumeRef


class GetSlice(Tool):
    """Walk a volume."""

    name = "get_slice"
    description = (
        "Show another slice of the volume that an image is a slice of. Slices count from 0: axial from inferior, "
        "coronal from posterior, sagittal from the patient's left. Give index or position."
    )
    cost = ToolCost.INLINE
    example: ClassVar[Mapping[str, Any] | None] = {"plane": "coronal", "position": 500}
    parameters: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {
            "plane": {"type": "string", "enum": list(EDGES)},
            "index": {"type": "integer", "minimum": 0},
            "position": {
                "type": "number",
                "minimum": 0,
                "maximum": 1000,
                "description": "Instead of index: from 0, the first slice, to 1000, the last.",
            },
            "thickness": {
                "type": "integer",
                "minimum": 1,
                "description": "Slices that a maximum-intensity projection around the index joins; default 1.",
            },
            "image": dict(IMAGE_INDEX),
        },
        "required": ["plane"],
        "additionalProperties": False,
    }

    def run(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutput:
        """Return the slice, and a text such as `axial 94 of 0 to 188; edges: left R, right L, top A, bottom P`."""
        image = context.image(int(arguments.get("image", 0)))
        values = image.volume()
        assert image.record.place is not None, "an image with a volume has a place in it"
        volume, plane = image.record.place.volume, arguments["plane"]
        index = _read_index(arguments, volume, plane)
        num_projected = int(arguments.get("thickness", 1))
        film = cut_slice(values, volume.spacing_mm, plane=plane, index=index, num_projected=num_projected)
        place = SlicePlace(volume=volume, plane=plane, index=index, num_projected=num_projected)
        return ToolOutput(
            text=describe_place(place), images=(Slice(values=film.values, spacing_mm=film.spacing_mm, place=place),)
        )


def describe_place(place: SlicePlace) -> str:
    """Say which slice an image is, and what lies at its edges."""
    count = num_slices(place.volume.shape, place.plane)
    left, right, top, bottom = EDGES[place.plane]
    edges = f"edges: left {left}, right {right}, top {top}, bottom {bottom}"
    if place.num_projected == 1:
        return f"{place.plane} {place.index} of 0 to {count - 1}; {edges}"
    joined = projected_slices(count, place.index, place.num_projected)
    return f"maximum of {place.plane} {joined.start} to {joined.stop - 1} of 0 to {count - 1}; {edges}"


def _read_index(arguments: Mapping[str, Any], volume: VolumeRef, plane: Plane) -> int:
    count = num_slices(volume.shape, plane)
    if ("index" in arguments) == ("position" in arguments):
        raise ToolArgumentError("give either index or position")
    index = int(arguments["index"]) if "index" in arguments else round(arguments["position"] * (count - 1) / 1000)
    if index >= count:
        raise ToolArgumentError(f"{plane} slices are 0 to {count - 1}, there is no {index}")
    return index
