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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from medvista_ray.errors import ToolArgumentError, ToolError
from medvista_ray.images.codec import decode
from medvista_ray.images.geometry import Transform, mask_from_source
from medvista_ray.images.volumes import decode_volume
from medvista_ray.images.windowing import apply_window, to_rgb
from medvista_ray.tools.views import View, Window
from medvista_ray.types.messages import PNG_MIME, HeaderValue, ImageRef, Plane, VolumeRef

IMAGE_INDEX: Mapping[str, Any] = MappingProxyType(
    {"type": "integer", "minimum": 0, "description": "Which image, counted from 0 in order of appearance; default 0."}
)


class ToolCost(StrEnum):
    """Where a tool runs."""

    INLINE = "inline"  # in the env's own process: short array code of this package only, it cannot be killed
    POOLED = "pooled"  # in a warm worker process that is killed at the deadline
    SERVICE = "service"  # in a resident process that loads its weights once and runs calls in batches


@dataclass(frozen=True, slots=True, kw_only=True)
class CallKey:
    """Names one call, so that a tool with effects can tell a retry from a new call."""

    trajectory: str = ""
    turn: int = 0
    attempt: int = 0  # +1 for each retry


@dataclass(frozen=True, slots=True, kw_only=True)
class SlicePlace:
    """Which slice of which volume an image is."""

    volume: VolumeRef
    plane: Plane
    index: int
    num_projected: int = 1  # slices that a maximum-intensity projection joins; 1 = a plain slice


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """What is known of one indexed image, without its bytes."""

    index: int
    ref: ImageRef  # the image itself: a source, or what a tool made
    source: ImageRef  # the source it comes from
    view: View | None  # how to draw it from the source; None for a picture that a tool painted
    to_source: Transform  # pixels of `ref` -> pixels of `source`
    place: SlicePlace | None = None  # of the source, when it is a slice of a volume
    mask_digest: str | None = None  # of the object that a tool marked in this image: PNG of the size of `source`
    header: Mapping[str, HeaderValue] = field(default_factory=dict)  # allow-listed DICOM fields of the source

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

    def source_mask(self) -> np.ndarray:
        """Return the object that a tool marked here, bool [H, W] of the source; `ToolArgumentError` without one."""
        if self.record.mask_digest is None:
            raise ToolArgumentError(f"image {self.index} shows no mask: call segment first, and name its image")
        return decode(self._load(self.record.mask_digest), PNG_MIME)[..., 0] > 0

    def mask(self) -> np.ndarray:
        """Return the object that a tool marked here, bool [H, W] of this image."""
        ref = self.record.ref
        return mask_from_source(self.source_mask(), self.record.to_source, width=ref.width, height=ref.height)

    def volume(self) -> np.ndarray:
        """Return the volume that this image is a slice of, [X, Y, Z]; `ToolArgumentError` when it is none."""
        if self.record.place is None:
            raise ToolArgumentError(f"image {self.index} is no slice of a volume")
        return decode_volume(self._load(self.record.place.volume.digest))


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
    mask: np.ndarray | None = None  # bool [H, W] of the pixels: the object that is marked; later calls can measure it


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slice:
    """A slice of a volume: a new source image with values of its own, which later calls can window and magnify."""

    values: np.ndarray  # int16 or float32 [H, W]
    spacing_mm: tuple[float, float]  # (row, column)
    place: SlicePlace


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ToolOutput:
    """What a tool gives back. Short texts: each word is paid for by the policy's context."""

    text: str = ""
    images: tuple[View | Picture | Slice, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServiceCall:
    """One call of a batch."""

    arguments: Mapping[str, Any]
    context: ToolContext


class Tool(ABC):
    """A tool. Made once per process without arguments; `run` must not keep state between calls."""

    name: ClassVar[str]
    description: ClassVar[str]
    parameters: ClassVar[Mapping[str, Any]]  # JSON schema of the arguments
    example: ClassVar[Mapping[str, Any] | None] = None  # arguments that suit most images, for `check-env`
    cost: ClassVar[ToolCost] = ToolCost.POOLED
    deadline_s: ClassVar[float | None] = None  # a shorter deadline than env.tool_timeout_s

    def warm_up(self) -> None:  # noqa: B027  -- optional hook, not an abstract method
        """Load what `run` needs; called once when a worker starts."""

    @abstractmethod
    def run(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutput:
        """Do the work; raise `ToolArgumentError` for arguments that make no sense."""


class ServiceTool(Tool):
    """A tool around a model: one resident process holds its weights, and calls that wait together run together."""

    cost: ClassVar[ToolCost] = ToolCost.SERVICE
    max_batch: ClassVar[int] = 8  # calls that one `run_batch` gets
    batch_wait_s: ClassVar[float] = 0.005  # for more calls to arrive, once one is there

    @abstractmethod
    def run_batch(self, calls: Sequence[ServiceCall]) -> list[ToolOutput | ToolError]:
        """Do the work of several calls; the result of each, in order, or the error that is its end."""

    def run(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutput:
        """Run one call."""
        result = self.run_batch([ServiceCall(arguments=arguments, context=context)])[0]
        if isinstance(result, ToolError):
            raise result
        return result
