"""`ground`: boxes around what stands out from the background. It reads no text and knows no organ or finding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from medvista_ray.images.geometry import Box, downscale
from medvista_ray.tools.base import IMAGE_INDEX, Picture, Tool, ToolContext, ToolCost, ToolOutput
from medvista_ray.tools.coordinates import box_in_thousandths
from medvista_ray.tools.overlay import draw_boxes

MAX_SIDE_PX = 1024  # larger images are shrunk first
DEFAULT_BOXES = 20
MOST_BOXES = 150  # a text of these fits
_DEFAULT_SIZE = 16  # thousandths of the longer side


class Ground(Tool):
    """Propose boxes: a threshold, its components, and a watershed that parts those that touch."""

    name = "ground"
    description = (
        "Propose boxes around everything brighter (or darker) than its background, largest first. It takes no words: "
        "it cannot look for a named object, and does not say what a box holds."
    )
    cost = ToolCost.POOLED
    parameters: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {
            "objects": {"type": "string", "enum": ["bright", "dark"], "description": "Default bright."},
            "min_size": {
                "type": "number",
                "minimum": 2,
                "maximum": 1000,
                "description": f"Of the smallest object, in thousandths of the longer side; default {_DEFAULT_SIZE}.",
            },
            "max_boxes": {
                "type": "integer",
                "minimum": 1,
                "maximum": MOST_BOXES,
                "description": f"Default {DEFAULT_BOXES}.",
            },
            "image": dict(IMAGE_INDEX),
        },
        "additionalProperties": False,
    }

    def warm_up(self) -> None:
        """Import the libraries before the first deadline runs."""
        import skimage.feature
        import skimage.filters
        import skimage.segmentation  # noqa: F401

    def run(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutput:
        """Return a picture of the numbered boxes, and their numbers and coordinates."""
        image = context.image(int(arguments.get("image", 0)))
        pixels = downscale(image.pixels(), MAX_SIDE_PX)
        grey = pixels.mean(axis=2) / 255
        min_size_px = arguments.get("min_size", _DEFAULT_SIZE) * max(grey.shape) / 1000
        boxes = propose_boxes(1 - grey if arguments.get("objects") == "dark" else grey, min_size_px=min_size_px)
        shown = boxes[: int(arguments.get("max_boxes", DEFAULT_BOXES))]
        if not shown:
            return ToolOutput(text="nothing stands out from the background")
        scale = image.record.ref.width / pixels.shape[1], image.record.ref.height / pixels.shape[0]
        lines = (
            f"{number}: {box_in_thousandths(tuple(np.multiply(box, scale * 2)), image.record)}"
            for number, box in enumerate(shown, start=1)
        )
        head = f"{len(boxes)} boxes, the {len(shown)} largest" if len(shown) < len(boxes) else f"{len(boxes)} boxes"
        text = "\n".join((f"{head}, in thousandths:", *lines))
        return ToolOutput(text=text, images=(Picture(pixels=draw_boxes(pixels, shown), parent=image.index),))


def propose_boxes(grey: np.ndarray, *, min_size_px: float) -> list[Box]:
    """Return boxes of the bright objects of float [H, W], largest first.

    Args:
        grey: brightness.
        min_size_px: objects of a smaller area than a disc of this diameter are left out; half of it is the least
            distance between the middles of two objects that touch.
    """
    from scipy import ndimage
    from skimage.feature import peak_local_max
    from skimage.filters import gaussian, threshold_otsu
    from skimage.segmentation import watershed

    smooth = gaussian(grey, sigma=1)
    if smooth.max() <= smooth.min():
        return []
    mask = smooth > threshold_otsu(smooth)
    # The distance to the background, smoothed, has one peak for each round object.
    distance = gaussian(ndimage.distance_transform_edt(mask), sigma=1)
    parts, _ = ndimage.label(mask)
    peaks = peak_local_max(distance, min_distance=max(1, round(min_size_px / 2)), labels=parts, exclude_border=False)
    markers = np.zeros(mask.shape, np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels = watershed(-distance, markers, mask=mask)
    areas = np.bincount(labels.ravel())
    found = [
        (int(areas[number]), (float(columns.start), float(rows.start), float(columns.stop), float(rows.stop)))
        for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1)
        if areas[number] >= np.pi * min_size_px**2 / 4
    ]
    return [box for _, box in sorted(found, key=lambda pair: (-pair[0], pair[1]))]
