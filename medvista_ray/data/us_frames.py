"""Real ultrasound frames and what is printed on them: strings with their boxes, calipers, and text to blank.

The strings in `us_frames.json` were read by OCR and checked by eye. Names of institutions, dates and times are blanked
before a frame becomes an image. Coordinates are pixels of the whole frame, (x, y).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from medvista_ray.data.manifest import ManifestEntry, Split, find_entry
from medvista_ray.errors import DataError
from medvista_ray.images.dicom import read_dicom, read_dicom_facts

PixelBox = tuple[int, int, int, int]  # x0 y0 x1 y1


class FrameString(msgspec.Struct, frozen=True, kw_only=True):
    """One string on a frame."""

    text: str
    question: str  # that it answers
    aliases: list[str]  # as right as the text, for that question
    box: PixelBox | None  # None = asked by its name alone


class Caliper(msgspec.Struct, frozen=True, kw_only=True):
    """Two crosses, and the distance between them as the scanner printed it."""

    points: tuple[tuple[int, int], tuple[int, int]]
    printed_cm: float
    result: PixelBox  # where it is printed


class FrameText(msgspec.Struct, frozen=True, kw_only=True):
    """What is printed on a frame."""

    entry: str  # of the manifest
    blank: list[PixelBox]
    strings: list[FrameString]
    caliper: Caliper | None = None


class _Document(msgspec.Struct, frozen=True):
    schema: int
    frames: list[FrameText]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """One frame, ready to be shown."""

    text: FrameText
    pixels: np.ndarray  # uint8 [H, W, 3]; what has to be blank is black
    spacing_mm: tuple[float, float] | None  # (row, column), from the regions that the header describes


@cache
def load_frame_texts(split: Split) -> tuple[FrameText, ...]:
    """Read what is printed on the frames of a split."""
    data = resources.files("medvista_ray.data").joinpath("us_frames.json").read_bytes()
    frames = msgspec.json.decode(data, type=_Document).frames
    return tuple(frame for frame in frames if find_entry(frame.entry).split == split)


@cache
def load_frames(split: Split) -> tuple[Frame, ...]:
    """Decode the frames of a split and blank what must not be seen."""
    return tuple(_load(text, find_entry(text.entry)) for text in load_frame_texts(split))


def blank(pixels: np.ndarray, boxes: list[PixelBox]) -> np.ndarray:
    """Return a copy with black boxes."""
    copy = pixels.copy()
    for x0, y0, x1, y1 in boxes:
        copy[y0:y1, x0:x1] = 0
    return copy


def _load(text: FrameText, entry: ManifestEntry) -> Frame:
    path = entry.locate()
    pixels = _decode(path)
    if pixels.shape[2:] != (3,) or pixels.dtype != np.uint8:
        raise DataError(f"data.source: {entry.file} of {entry.package} holds no 8-bit colour or grey frame")
    return Frame(text=text, pixels=blank(pixels, text.blank), spacing_mm=read_dicom_facts(path).spacing_mm)


def _decode(path: Path) -> np.ndarray:
    """Decode the first frame; lossless JPEG through Pillow, since pydicom has no decoder of its own for it."""
    from pydicom import dcmread
    from pydicom.encaps import get_frame
    from pydicom.uid import JPEGLosslessSV1

    dataset = dcmread(path, specific_tags=["PixelData", "NumberOfFrames"])
    if dataset.file_meta.TransferSyntaxUID != JPEGLosslessSV1:
        return read_dicom(path).values
    with Image.open(io.BytesIO(get_frame(dataset.PixelData, 0, number_of_frames=1)), formats=["JPEG"]) as image:
        return np.array(image.convert("RGB"))
