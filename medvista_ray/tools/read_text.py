"""`read_text`: the strings that stand in an image, with their boxes. RapidOCR with the models of its own wheel.

An image is always read as a whole, once: a small part of it by itself is read worse, and slower, since RapidOCR
enlarges it. For text that is too small, `zoom` first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from medvista_ray.errors import MedVistaError, MissingPackageError, ToolError
from medvista_ray.images.geometry import Box, downscale
from medvista_ray.tools.base import IMAGE_INDEX, IndexedImage, ServiceCall, ServiceTool, ToolOutput
from medvista_ray.tools.coordinates import BOX, UNIT, box_in_thousandths, read_box
from medvista_ray.tools.onnx_session import num_threads
from medvista_ray.tools.renderer import SizedCache

MAX_SIDE_PX = 2048  # larger images are shrunk first
_MAX_LINES = 100
_CACHED_LINES = 10_000  # of the images that were read lately
_MIN_CONFIDENCE = 0.5  # RapidOCR's own default


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of text."""

    text: str
    box: Box  # pixels of the image

    @property
    def middle(self) -> tuple[float, float]:
        """Return the middle of the box."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


class ReadText(ServiceTool):
    """Read text."""

    name = "read_text"
    description = (
        "Read the text in an image, or in a box of it; gives each line with its box. Zoom first on small print."
    )
    max_batch = 4
    parameters: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {
            "bbox": {**BOX, "description": "[x0, y0, x1, y1] to read in; default all of it."},
            "unit": dict(UNIT),
            "image": dict(IMAGE_INDEX),
        },
        "additionalProperties": False,
    }

    def __init__(self) -> None:
        self._reader: Any = None
        self._lines: SizedCache[list[Line]] = SizedCache(_CACHED_LINES, size_of=lambda lines: 1 + len(lines))

    def warm_up(self) -> None:
        """Load the models; `MissingPackageError` names the extra that brings them."""
        self._reader = make_reader()

    def run_batch(self, calls: Sequence[ServiceCall]) -> list[ToolOutput | ToolError]:
        """Read for each call."""
        return [self._run_one(call) for call in calls]

    def _run_one(self, call: ServiceCall) -> ToolOutput | ToolError:
        try:
            return self._read(call)
        except ToolError as error:
            return error
        except MedVistaError as error:
            return ToolError(str(error))

    def _read(self, call: ServiceCall) -> ToolOutput:
        image = call.context.image(int(call.arguments.get("image", 0)))
        lines = self._read_image(image)
        if "bbox" in call.arguments:
            unit = call.arguments.get("unit", "thousandths")
            x0, y0, x1, y1 = read_box(call.arguments["bbox"], unit, image.record)
            lines = [line for line in lines if x0 <= line.middle[0] <= x1 and y0 <= line.middle[1] <= y1]
        texts = [f'"{line.text}" {box_in_thousandths(line.box, image.record)}' for line in lines]
        if len(texts) > _MAX_LINES:
            texts[_MAX_LINES:] = [f"and {len(texts) - _MAX_LINES} more lines: give a box"]
        return ToolOutput(text="\n".join(texts) or "no text found")

    def _read_image(self, image: IndexedImage) -> list[Line]:
        key = image.record.ref.digest, image.record.window
        lines = self._lines.get(key)
        if lines is None:
            pixels = image.pixels()
            small = downscale(pixels, MAX_SIDE_PX)
            lines = read_lines(self._reader, small, scale=pixels.shape[1] / small.shape[1])
            self._lines.put(key, lines)
        return lines


def make_reader() -> Any:
    """Load RapidOCR with the models in its wheel, and explicit threads."""
    try:
        import cv2
        from rapidocr import RapidOCR
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"{error.name} is not installed: pip install 'medvista-ray[ocr]'") from error
    cv2.setNumThreads(num_threads())
    return RapidOCR(
        params={
            "Global.log_level": "error",
            "Global.text_score": _MIN_CONFIDENCE,
            "EngineConfig.onnxruntime.intra_op_num_threads": num_threads(),
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )


def read_lines(reader: Any, pixels: np.ndarray, *, scale: float = 1.0) -> list[Line]:
    """Read uint8 [H, W, 3]; rows from top to bottom, lines of one row from left to right.

    Args:
        reader: of `make_reader`.
        pixels: the image.
        scale: pixels of the boxes for one of these.
    """
    found = reader(np.ascontiguousarray(pixels[..., ::-1]))  # it wants BGR, as OpenCV has it
    if found.boxes is None or found.txts is None:
        return []
    lines = []
    for corners, text in zip(found.boxes, found.txts, strict=True):
        (x0, y0), (x1, y1) = np.min(corners, axis=0) * scale, np.max(corners, axis=0) * scale
        lines.append(Line(text=str(text), box=(float(x0), float(y0), float(x1), float(y1))))
    return in_reading_order(lines)


def in_reading_order(lines: Sequence[Line]) -> list[Line]:
    """Order lines; one whose middle lies above the lower edge of the first of a row belongs to that row."""
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: line.box[1]):
        if rows and line.middle[1] < rows[-1][0].box[3]:
            rows[-1].append(line)
        else:
            rows.append([line])
    return [line for row in rows for line in sorted(row, key=lambda line: line.box[0])]
