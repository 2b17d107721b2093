"""`read_text`: the strings that stand in an image, with their boxes. RapidOCR with the models of its own wheel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from medvista_ray.errors import MedVistaError, MissingPackageError, ToolError
from medvista_ray.images.geometry import downscale
from medvista_ray.tools.base import IMAGE_INDEX, ServiceCall, ServiceTool, ToolOutput
from medvista_ray.tools.coordinates import BOX, UNIT, box_in_thousandths, read_box
from medvista_ray.tools.onnx_session import num_threads
from medvista_ray.tools.views import whole_pixels

MAX_SIDE_PX = 2048  # larger images are shrunk first
_MAX_LINES = 100
_MIN_CONFIDENCE = 0.5  # RapidOCR's own default


class ReadText(ServiceTool):
    """Read text."""

    name = "read_text"
    description = "Read the text in an image, or in a box of it; gives each line with its box."
    max_batch = 4
    parameters: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {
            "bbox": {**BOX, "description": "[x0, y0, x1, y1] to read in; default: all of the image."},
            "unit": dict(UNIT),
            "image": dict(IMAGE_INDEX),
        },
        "additionalProperties": False,
    }

    def __init__(self) -> None:
        self._reader: Any = None

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
        pixels, record = image.pixels(), image.record
        x0 = y0 = 0
        if "bbox" in call.arguments:
            box = read_box(call.arguments["bbox"], call.arguments.get("unit", "thousandths"), record)
            x0, y0, x1, y1 = whole_pixels(box, width=record.ref.width, height=record.ref.height)
            pixels = pixels[y0:y1, x0:x1]
        small = downscale(np.ascontiguousarray(pixels), MAX_SIDE_PX)
        scale_x, scale_y = pixels.shape[1] / small.shape[1], pixels.shape[0] / small.shape[0]
        lines = []
        for corners, text in read_lines(self._reader, small):
            (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
            place = x0 + left * scale_x, y0 + top * scale_y, x0 + right * scale_x, y0 + bottom * scale_y
            lines.append(f'"{text}" {box_in_thousandths(place, record)}')
        if len(lines) > _MAX_LINES:
            lines[_MAX_LINES:] = [f"and {len(lines) - _MAX_LINES} more lines: read a box"]
        return ToolOutput(text="\n".join(lines) or "no text found")


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


def read_lines(reader: Any, pixels: np.ndarray) -> list[tuple[np.ndarray, str]]:
    """Read uint8 [H, W, 3]: the corners [4, 2] of each line in pixels, and its text, from top to bottom."""
    found = reader(np.ascontiguousarray(pixels[..., ::-1]))  # it wants BGR, as OpenCV has it
    if found.boxes is None or found.txts is None:
        return []
    lines = [
        (np.asarray(corners, np.float64), str(text)) for corners, text in zip(found.boxes, found.txts, strict=True)
    ]
    return sorted(lines, key=lambda line: (line[0][:, 1].min(), line[0][:, 0].min()))
