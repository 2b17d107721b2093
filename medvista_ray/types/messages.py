"""What a policy reads: images by reference, messages, tasks; and, apart from them, what only rewards see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Role = Literal["system", "user", "assistant", "tool"]
NPY_MIME = "application/x-npy"  # a 2-D array of stored values (HU for CT), decoded without pickle
PNG_MIME = "image/png"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """One encoded image, by digest; the bytes are in the blob store."""

    digest: str  # SHA-256 of the encoded bytes, hex
    width: int  # pixels
    height: int  # pixels
    mime: str = PNG_MIME
    spacing_mm: tuple[float, float] | None = None  # (row, column) millimetres between pixel centres
    modality: str | None = None  # DICOM code: CT, MR, US, CR …

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"an image has at least one pixel, got {self.width} x {self.height}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPart:
    """Text inside a message; never read for markers."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePart:
    """An image inside a message."""

    image: ImageRef


Part = TextPart | ImagePart


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation: parts in order."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """Return the images of this message, in order."""
        return tuple(part.image for part in self.parts if isinstance(part, ImagePart))

    @property
    def text(self) -> str:
        """Return the text of this message without its images."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One allowed answer of a closed question."""

    choice_id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What the policy and the tools may see of one question."""

    task_id: str
    family: str
    question: str
    images: tuple[ImageRef, ...]  # the source images, indexed from 0
    choices: tuple[Choice, ...] = ()  # empty for an open question
    metadata: Mapping[str, str | int | float | bool] = field(default_factory=dict)  # allow-listed, non-identifying


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """What only rewards see. Never sent to a tool, a log, the journal, the blob store or the stream.

    Its repr names the task and nothing else, so that no log line can carry it.
    """

    task_id: str
    answer: str = field(repr=False)  # the choice id of a closed question, else the text or number
    tolerance: float | None = field(default=None, repr=False)  # relative; set for numeric answers
    boxes: np.ndarray = field(
        default_factory=lambda: np.zeros((0, 4), np.float32), repr=False
    )  # [N, 4] x0 y0 x1 y1, source pixels
