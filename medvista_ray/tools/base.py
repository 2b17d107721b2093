"""What a tool is: a name, a JSON schema, a price and a `run`. Subclass `Tool` to add your own.

A tool sees arguments and indexed images, both made from `Task` alone; it never meets a reference. Knows no episode.

    class Invert(Tool):
        name = "invert"
        description = "Show an image with dark and bright exchanged."
        parameters = {"type": "object", "properties": {"image": dict(IMAGE_INDEX)}, "additionalProperties": False}

        def run(self, arguments, context):
            image = context.image(arguments.get("image", 0))
            return ToolOutput(images=(Picture(pixels=255 - image.pixels(), parent=image.index),))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from medvista_ray.errors import ToolArgumentError
from medvista_ray.images.codec import decode
from medvista_ray.images.geometry import Transform
from medvista_ray.images.windowing import apply_window, to_rgb
from medvista_ray.tools.views import View, Window
from medvista_ray.types.messages import ImageRef

IMAGE_INDEX: Mapping[str, Any] = MappingProxyType(
    {"type": "integer", "minimum": 0, "description": "Which image, counted from 0 in order of appearance; default 0."}
)


class ToolCost(StrEnum):
    """Where a tool runs."""

    INLINE = "inline"  # in the env's own process: short array code of this package only, it cannot be killed
    POOLED = "pooled"  # in a warm worker process that is killed at the deadline


@dataclass(frozen=True, slots=True, kw_only=True)
class CallKey:
    """Names one call, so that a tool with effects can tell a retry from a new call."""

    trajectory: str = ""
    turn: int = 0
    attempt: int = 0  # +1 for each retry


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """What is known of one indexed image, without its bytes."""

    index: int
    ref: ImageRef  # the image itself: a source, or what a tool made
    source: ImageRef  # the source it comes from
    view: View | None  # how to draw it from the source; None for a picture that a tool painted
    to_source: Transform  # pixels of `ref` -> pixels of `source`

    @property
    def spacing_mm(self) -> tuple[float, float] | None:
        """(row, column) millimetres between pixel centres of the source."""
        return self.source.spacing_mm

    @property
    def window(self) -> Window | None:
        """The window this image is shown through; None for 8-bit images."""
        return None if self.view is None else self.view.window


class IndexedImage:
    """An image that a call can address by its index, with access to its pixels and to those of its source."""

    def __init__(self, record: ImageRecord, load: Callable[[str], bytes]) -> None:
        self.record = record
        self._load = load

    @property
    def index(self) -> int:
        """Return the index that calls use."""
        return self.record.index

    def pixels(self) -> np.ndarray:
        """Return this image as it is shown, uint8 [H, W, 3]; a source at full resolution, through its window."""
        values, window = decode(self._load(self.record.ref.digest), self.record.ref.mime), self.record.window
        if values.dtype == np.uint8 or window is None:
            return values
        return to_rgb(apply_window(values, center=window.center, width=window.width))

    def source_values(self) -> np.ndarray:
        """Return the stored values of the source: [H, W] of more than 8 bits, or uint8 [H, W, 3]."""
        return decode(self._load(self.record.source.digest), self.record.source.mime)


class ToolContext:
    """What a call may look at besides its arguments."""

    def __init__(self, records: tuple[ImageRecord, ...], *, load: Callable[[str], bytes], key: CallKey) -> None:
        self.records = records
        self.key = key
        self._load = load

    @cached_property
    def images(self) -> tuple[IndexedImage, ...]:
        """Return every indexed image: the sources first, then what tools made."""
        return tuple(IndexedImage(record, self._load) for record in self.records)

    def image(self, index: int) -> IndexedImage:
        """Return one indexed image; `ToolArgumentError` when there is none of that index."""
        if not 0 <= index < len(self.records):
            raise ToolArgumentError(f"there is no image {index}; images are 0 to {len(self.records) - 1}")
        return self.images[index]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """Pixels that a tool painted itself."""

    pixels: np.ndarray  # uint8 [H, W] or [H, W, 3]
    parent: int  # index of the image it was made from
    to_parent: Transform | None = None  # its pixels -> those of the parent; None = same frame, scaled to fit


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ToolOutput:
    """What a tool gives back. Short texts: each word is paid for by the policy's context."""

    text: str = ""
    images: tuple[View | Picture, ...] = ()


class Tool(ABC):
    """A tool. Made once per process without arguments; `run` must not keep state between calls."""

    name: ClassVar[str]
    description: ClassVar[str]
    parameters: ClassVar[Mapping[str, Any]]  # JSON schema of the arguments
    cost: ClassVar[ToolCost] = ToolCost.POOLED
    deadline_s: ClassVar[float | None] = None  # a shorter deadline than env.tool_timeout_s

    def warm_up(self) -> None:  # noqa: B027  -- optional hook, not an abstract method
        """Load what `run` needs; called once when a worker starts."""

    @abstractmethod
    def run(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutput:
        """Do the work; raise `ToolArgumentError` for arguments that make no sense."""
