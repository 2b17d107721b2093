"""What a policy reads: images by reference, messages, tasks; and, apart from them, what only rewards see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Role = Literal["system", "user", "assistant", "tool"]
NPY_MIME = "application/x-npy"  # a 2-D array of stored values (HU for CT), decoded without pickle
PNG_MIME = "image/png"
AnswerKind = Literal["choice", "text", "number", "boxes", "mask", "list"]
Plane = Literal["axial", "coronal", "sagittal"]
HeaderValue = str | int | float


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
class VolumeRef:
    """One volume by digest: a 3-D array of stored values, canonical (x to the right, y to anterior, z to superior)."""

    digest: str  # SHA-256 of the encoded bytes, hex
    shape: tuple[int, int, int]  # voxels along x, y, z
    spacing_mm: tuple[float, float, float]  # millimetres between voxel centres along x, y, z
    modality: str | None = None  # DICOM code


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
    volumes: tuple[VolumeRef, ...] = ()  # indexed after `images`, each first shown by its middle axial slice
    choices: tuple[Choice, ...] = ()  # empty for an open question
    answer_kind: AnswerKind | None = None  # None = choice if there are choices, else text
    unit: str = ""  # that a number is asked in
    headers: Mapping[str, Mapping[str, HeaderValue]] = field(
        default_factory=dict
    )  # digest -> allow-listed DICOM fields
    metadata: Mapping[str, str | int | float | bool] = field(default_factory=dict)  # allow-listed, non-identifying

    @property
    def answers_with(self) -> AnswerKind:
        """Return what an answer has to be."""
        return self.answer_kind or ("choice" if self.choices else "text")

    @property
    def digests(self) -> tuple[str, ...]:
        """Return the digests of all source images and volumes."""
        return (*(ref.digest for ref in self.images), *(ref.digest for ref in self.volumes))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """What only rewards see. Never sent to a tool, a log, the journal, the blob store or the stream.

    Its repr names the task and nothing else, so that no log line can carry it.
    """

    task_id: str
    answer: str = field(repr=False)  # the choice id of a closed question, else the text or number
    aliases: tuple[str, ...] = field(default=(), repr=False)  # other texts that are as right as `answer`
    items: tuple[str, ...] = field(default=(), repr=False)  # of an ordered list, in order
    tolerance: float | None = field(default=None, repr=False)  # of a number, relative to it
    absolute_tolerance: float | None = field(default=None, repr=False)  # of a number, in its unit; the wider one holds
    boxes: np.ndarray = field(
        default_factory=lambda: np.zeros((0, 4), np.float32), repr=False
    )  # [N, 4] x0 y0 x1 y1, pixels of image 0: what to find
    regions: np.ndarray = field(
        default_factory=lambda: np.zeros((0, 4), np.float32), repr=False
    )  # [M, 4] as `boxes`: where the evidence is, for cited boxes
    mask: np.ndarray | None = field(default=None, repr=False)  # bool [H, W], pixels of image 0: what to segment
