"""`segment`: the mask of an object from a box or points, drawn over the image; later calls can measure it.

Boxes go to LiteMedSAM where it is installed and prepared; else, and for points without a box, which that model does
not understand, a threshold or region growing does it, and the text says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from medvista_ray.errors import DataError, MedVistaError, MissingPackageError, ToolArgumentError, ToolError
from medvista_ray.images.geometry import Box, downscale
from medvista_ray.tools.base import (
    IMAGE_INDEX,
    ImageRecord,
    IndexedImage,
    Picture,
    ServiceCall,
    ServiceTool,
    Tool,
    ToolContext,
    ToolCost,
    ToolOutput,
)
from medvista_ray.tools.coordinates import BOX, POINT, UNIT, box_in_thousandths, read_box, read_point
from medvista_ray.tools.litemedsam import PREPARE, Embedding, LiteMedSAM, is_prepared, model_folder
from medvista_ray.tools.onnx_session import import_onnxruntime
from medvista_ray.tools.overlay import draw_mask
from medvista_ray.tools.region_growing import Point, divide, segment_by_box, segment_by_points
from medvista_ray.tools.renderer import SizedCache

MAX_SIDE_PX = 2048  # larger images are shrunk first; their masks are scaled back
_EMBEDDINGS_BYTES = 128 * 2**20  # 32 images
_FALLBACK = "fallback: region growing and threshold; LiteMedSAM "
_EXTRA = "segment"
_PARAMETERS: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "bbox": {**BOX, "description": "[x0, y0, x1, y1] around the object."},
        "points": {
            "type": "array",
            "items": dict(POINT),
            "minItems": 1,
            "maxItems": 20,
            "description": "[[x, y], ...]; without bbox, a region grows from those in the object.",
        },
        "labels": {
            "type": "array",
            "items": {"type": "integer", "enum": [0, 1]},
            "description": "Of each point: 1 in the object (default), 0 outside of it.",
        },
        "unit": dict(UNIT),
        "image": dict(IMAGE_INDEX),
    },
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What to segment, in pixels of the image as it was shrunk."""

    box: Box | None
    positive: tuple[Point, ...]
    negative: tuple[Point, ...]


class SegmentClassical(Tool):
    """Segment without a model: Otsu in a box, regions grown from points. Needs no weights, always gives the same."""

    name = "segment"
    description = "Mark the object in a box, or around points, and show it; gives its area and its box."
    cost = ToolCost.POOLED
    parameters: ClassVar[Mapping[str, Any]] = _PARAMETERS

    def warm_up(self) -> None:
        """Import the libraries before the first deadline runs."""
        _import_libraries()

    def run(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutput:
        """Return the picture with the mask, its area and its box."""
        image = context.image(int(arguments.get("image", 0)))
        pixels = downscale(image.pixels(), MAX_SIDE_PX)
        mask = segment_classically(pixels, read_prompt(arguments, image.record, pixels))
        return show_mask(mask, pixels, image)


class Segment(ServiceTool):
    """Segment with LiteMedSAM: embeddings are kept, so that a second prompt on an image costs the decoder alone."""

    name = "segment"
    description = SegmentClassical.description
    max_batch = 8
    parameters: ClassVar[Mapping[str, Any]] = _PARAMETERS

    def __init__(self) -> None:
        self._model: LiteMedSAM | None = None
        self._fallback = f"{_FALLBACK}is not loaded\n"
        self._embeddings: SizedCache[Embedding] = SizedCache(
            _EMBEDDINGS_BYTES, size_of=lambda embedding: embedding.values.nbytes
        )

    def warm_up(self) -> None:
        """Load the weights; where that cannot be, keep what the text of each answer says instead."""
        _import_libraries()
        needs = _find_missing()
        if needs:
            self._fallback = f"{_FALLBACK}needs {' and '.join(needs)}\n"
            return
        try:
            self._model = LiteMedSAM(model_folder())
        except DataError as error:
            self._fallback = f"{_FALLBACK}cannot be used: {error}\n"

    def run_batch(self, calls: Sequence[ServiceCall]) -> list[ToolOutput | ToolError]:
        """Segment for each call; calls on one image share its embedding."""
        return [self._run_one(call) for call in calls]

    def _run_one(self, call: ServiceCall) -> ToolOutput | ToolError:
        try:
            image = call.context.image(int(call.arguments.get("image", 0)))
            pixels = downscale(image.pixels(), MAX_SIDE_PX)
            prompt = read_prompt(call.arguments, image.record, pixels)
            if self._model is None:
                return show_mask(segment_classically(pixels, prompt), pixels, image, note=self._fallback)
            if prompt.box is None:
                mask = segment_classically(pixels, prompt)
                return show_mask(mask, pixels, image, note="region growing: the model takes boxes only\n")
            mask = self._model.segment(self._embed(image, pixels), prompt.box)
            if prompt.positive or prompt.negative:
                mask = correct(pixels, mask, prompt)
            return show_mask(mask, pixels, image)
        except ToolError as error:
            return error
        except MedVistaError as error:
            return ToolError(str(error))

    def _embed(self, image: IndexedImage, pixels: np.ndarray) -> Embedding:
        assert self._model is not None, "asked for with a model only"
        key = image.record.ref.digest, image.record.window
        embedding = self._embeddings.get(key)
        if embedding is None:
            embedding = self._model.embed(pixels)
            self._embeddings.put(key, embedding)
        return embedding


def read_prompt(arguments: Mapping[str, Any], record: ImageRecord, pixels: np.ndarray) -> Prompt:
    """Read box and points into pixels of the shrunk image; `ToolArgumentError` says what makes no sense."""
    unit = arguments.get("unit", "thousandths")
    points = arguments.get("points", [])
    labels = arguments.get("labels", [1] * len(points))
    if len(labels) != len(points):
        raise ToolArgumentError(f"{len(points)} points and {len(labels)} labels: one label for each point is needed")
    scale_x, scale_y = pixels.shape[1] / record.ref.width, pixels.shape[0] / record.ref.height
    placed = [(x * scale_x, y * scale_y) for x, y in (read_point(point, unit, record) for point in points)]
    box: Box | None = None
    if "bbox" in arguments:
        x0, y0, x1, y1 = read_box(arguments["bbox"], unit, record)
        box = x0 * scale_x, y0 * scale_y, x1 * scale_x, y1 * scale_y
    prompt = Prompt(
        box=box,
        positive=tuple(point for point, label in zip(placed, labels, strict=True) if label == 1),
        negative=tuple(point for point, label in zip(placed, labels, strict=True) if label == 0),
    )
    if box is None and not prompt.positive:
        raise ToolArgumentError("bbox, or at least one point in the object (label 1), is needed")
    return prompt


def segment_classically(pixels: np.ndarray, prompt: Prompt) -> np.ndarray:
    """Return the mask of a prompt without a model, bool [H, W]."""
    grey = pixels.mean(axis=2)
    if prompt.positive:
        return segment_by_points(grey, prompt.positive, prompt.negative, box=prompt.box)
    assert prompt.box is not None, "a prompt has a box or a positive point"
    mask = segment_by_box(grey, prompt.box)
    return divide(grey, mask, (), prompt.negative) if prompt.negative else mask


def correct(pixels: np.ndarray, mask: np.ndarray, prompt: Prompt) -> np.ndarray:
    """Add the regions of positive points that a mask leaves out; take away those of negative points."""
    grey = pixels.mean(axis=2)
    outside = [point for point in prompt.positive if not mask[_pixel(point, mask)]]
    if outside:
        mask = mask | segment_by_points(grey, outside, (), box=prompt.box)
    return divide(grey, mask, prompt.positive, prompt.negative) if prompt.negative else mask


def show_mask(mask: np.ndarray, pixels: np.ndarray, image: IndexedImage, *, note: str = "") -> ToolOutput:
    """Draw a mask and describe it; `ToolArgumentError` when it is empty."""
    if not mask.any():
        raise ToolArgumentError("nothing stands out there: give another box, or a point in the object")
    record = image.record
    scale_x, scale_y = record.ref.width / pixels.shape[1], record.ref.height / pixels.shape[0]
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = columns[0] * scale_x, rows[0] * scale_y, (columns[-1] + 1) * scale_x, (rows[-1] + 1) * scale_y
    a, b, _, d, e, _ = record.to_source.coefficients
    area = int(mask.sum()) * scale_x * scale_y * abs(a * e - b * d)  # pixels of the source
    text = f"area {area:.0f} pixels of the source"
    if record.spacing_mm is not None:
        text = f"area {area * record.spacing_mm[0] * record.spacing_mm[1]:.1f} mm2"
    picture = Picture(pixels=draw_mask(pixels, mask), parent=image.index, mask=mask)
    return ToolOutput(text=f"{note}{text}, box {box_in_thousandths(box, record)}", images=(picture,))


def _pixel(point: Point, mask: np.ndarray) -> tuple[int, int]:
    return min(mask.shape[0] - 1, int(point[1])), min(mask.shape[1] - 1, int(point[0]))


def _find_missing() -> list[str]:
    """Return the commands that make the model usable; none when it is."""
    needs = []
    try:
        import_onnxruntime(extra=_EXTRA)
    except MissingPackageError:
        needs.append(f"pip install 'medvista-ray[{_EXTRA}]'")
    if not is_prepared():
        needs.append(PREPARE)
    return needs


def _import_libraries() -> None:
    import scipy.ndimage  # noqa: F401
    import skimage.filters
    import skimage.segmentation  # noqa: F401
