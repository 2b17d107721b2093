"""The frames between a pool or a service and its workers: msgpack behind a 4-byte length, on one socket pair.

pool -> worker: Setup once, then Call, or Batch from a service; Blob or Missing answers a Need
worker -> pool: Making for each tool and Ready, once; then Done for each Call and BatchDone for each Batch, and a Need
                before for each image it opens

Never pickle.
"""

from __future__ import annotations

import logging
import select
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, TypeVar

import msgspec
import numpy as np

from medvista_ray.errors import MedVistaError
from medvista_ray.images.geometry import Transform
from medvista_ray.tools.base import CallKey, ImageRecord, Picture, Slice, SlicePlace, ToolOutput
from medvista_ray.tools.execution import Execution, Request, failed
from medvista_ray.tools.views import View
from medvista_ray.types.tool_calls import ToolFailure

MAX_FRAME_BYTES = 512 * 2**20
_LENGTH = struct.Struct("<I")
_log = logging.getLogger(__name__)
_Frame = TypeVar("_Frame", bound=msgspec.Struct)


class Setup(msgspec.Struct, tag=True, frozen=True):
    """The tools that a worker makes before it says that it is ready."""

    targets: Mapping[str, str]  # name in calls -> `pkg.module:Class`


class Call(msgspec.Struct, tag=True, frozen=True):
    """One call. Arguments travel as JSON text, which carries every value that a model can write."""

    tool: str
    arguments: str
    records: tuple[ImageRecord, ...]
    key: CallKey


class Blob(msgspec.Struct, tag=True, frozen=True):
    """The bytes that a worker asked for."""

    data: bytes


class Missing(msgspec.Struct, tag=True, frozen=True):
    """There are no such bytes."""


class Batch(msgspec.Struct, tag=True, frozen=True):
    """Calls of one tool that run together."""

    calls: tuple[Call, ...]


class Making(msgspec.Struct, tag=True, frozen=True):
    """The worker begins to make a tool: the one to blame when nothing follows."""

    tool: str


class Ready(msgspec.Struct, tag=True, frozen=True):
    """The worker has made its tools."""


class Need(msgspec.Struct, tag=True, frozen=True):
    """The worker wants the bytes of an image."""

    digest: str


class PictureFrame(msgspec.Struct, tag=True, frozen=True):
    """A `Picture`: shape and raw bytes instead of an array."""

    shape: tuple[int, ...]
    pixels: bytes
    parent: int
    to_parent: Transform | None
    mask: bytes | None  # bool [H, W] of `shape`, one byte a pixel


class ViewFrame(msgspec.Struct, tag=True, frozen=True):
    """A `View`."""

    view: View


class SliceFrame(msgspec.Struct, tag=True, frozen=True):
    """A `Slice`: dtype, shape and raw bytes instead of an array."""

    dtype: str
    shape: tuple[int, int]
    values: bytes
    spacing_mm: tuple[float, float]
    place: SlicePlace


class Done(msgspec.Struct, tag=True, frozen=True):
    """The end of a call."""

    text: str
    images: tuple[ViewFrame | PictureFrame | SliceFrame, ...]
    failure: ToolFailure | None
    error: str


class BatchDone(msgspec.Struct, tag=True, frozen=True):
    """The ends of the calls of a batch, in order."""

    dones: tuple[Done, ...]


def make_call(request: Request, *, attempt: int = 0) -> Call:
    """Turn a request into its frame; each retry carries the next attempt."""
    key = replace(request.key, attempt=request.key.attempt + attempt)
    return Call(request.tool, request.arguments, request.records, key)


def find_bytes(requests: Sequence[Request], digest: str) -> Blob | Missing:
    """Answer a Need with the bytes of a digest, from a call that may open it."""
    for request in requests:
        if digest in digests_of(request.records):
            try:
                return Blob(request.load(digest))
            except (KeyError, OSError, MedVistaError) as error:
                _log.warning("image %s cannot be given to %s: %s", digest[:12], request.tool, error)
    return Missing()


def digests_of(records: Sequence[ImageRecord]) -> set[str]:
    """Return every digest that a call with these records may open."""
    digests: set[str] = set()
    for record in records:
        digests.update((record.ref.digest, record.source.digest))
        if record.mask_digest is not None:
            digests.add(record.mask_digest)
        if record.place is not None:
            digests.add(record.place.volume.digest)
    return digests


def make_done(execution: Execution) -> Done:
    """Turn an execution into its frame; an output that no frame can carry is a failure of the tool."""
    images = []
    for image in execution.output.images:
        frame = _frame_of(image)
        if frame is None:
            return make_done(failed(ToolFailure.FAILED, "an image is no View, no Slice and no Picture of uint8 pixels"))
        images.append(frame)
    return Done(execution.output.text, tuple(images), execution.failure, execution.error)


def read_done(done: Done) -> Execution:
    """Turn a frame back into an execution."""
    if done.failure is not None:
        return Execution(failure=done.failure, error=done.error)
    try:
        images = tuple(_image_of(frame) for frame in done.images)
    except (TypeError, ValueError) as error:  # bytes that do not fit their shape or dtype
        return failed(ToolFailure.FAILED, f"an image of the tool cannot be read: {error}")
    return Execution(output=ToolOutput(text=done.text, images=images))


def _frame_of(image: object) -> ViewFrame | PictureFrame | SliceFrame | None:
    if isinstance(image, View):
        return _checked(ViewFrame(image))
    if isinstance(image, Slice):
        return _slice_frame_of(image)
    return _picture_frame_of(image) if isinstance(image, Picture) else None


def _slice_frame_of(image: Slice) -> SliceFrame | None:
    if not (isinstance(image.values, np.ndarray) and image.values.ndim == 2 and image.values.dtype.kind in "biuf"):
        return None
    values = np.ascontiguousarray(image.values)
    frame = _checked(SliceFrame(values.dtype.str, values.shape, b"", image.spacing_mm, image.place))
    return msgspec.structs.replace(frame, values=values.tobytes())


def _picture_frame_of(image: Picture) -> PictureFrame | None:
    if not (isinstance(image.pixels, np.ndarray) and image.pixels.dtype == np.uint8):
        return None
    pixels, mask = np.ascontiguousarray(image.pixels), image.mask
    if mask is not None and not (
        isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == pixels.shape[:2]
    ):
        return None
    if not isinstance(image.parent, Integral):
        return None
    frame = _checked(PictureFrame(pixels.shape, b"", int(image.parent), image.to_parent, None))
    return msgspec.structs.replace(frame, pixels=pixels.tobytes(), mask=None if mask is None else mask.tobytes())


def _checked(frame: _Frame) -> _Frame:
    """Return what the other side will read, before pixels are in it; `msgspec.MsgspecError` when it would refuse it."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(frame, enc_hook=to_plain), type=type(frame))


def _image_of(frame: ViewFrame | PictureFrame | SliceFrame) -> View | Picture | Slice:
    if isinstance(frame, ViewFrame):
        return frame.view
    if isinstance(frame, SliceFrame):
        values = np.frombuffer(frame.values, frame.dtype).reshape(frame.shape)
        return Slice(values=values, spacing_mm=frame.spacing_mm, place=frame.place)
    pixels = np.frombuffer(frame.pixels, np.uint8).reshape(frame.shape)
    mask = None if frame.mask is None else np.frombuffer(frame.mask, np.bool_).reshape(frame.shape[:2])
    return Picture(pixels=pixels, parent=frame.parent, to_parent=frame.to_parent, mask=mask)


FromPool = Setup | Call | Batch | Blob | Missing
FromWorker = Making | Ready | Need | Done | BatchDone


class ChannelClosedError(ConnectionError):
    """The other side is gone."""


def to_plain(value: Any) -> Any:
    """Let NumPy numbers through, which tools mix with Python's, and every kind of mapping."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot be sent")


class Channel:
    """Frames over a socket; one reader, one writer. Deadlines are absolute, on `time.monotonic`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._encoder = msgspec.msgpack.Encoder(enc_hook=to_plain)
        self._to_worker = msgspec.msgpack.Decoder(FromPool)
        self._to_pool = msgspec.msgpack.Decoder(FromWorker)

    def send(self, frame: FromPool | FromWorker, *, deadline: float | None = None) -> None:
        """Send a frame; `TimeoutError` past the deadline, `ChannelClosedError` when nobody reads."""
        data = self._encoder.encode(frame)
        try:
            self._set_timeout(deadline)
            self._sock.sendall(_LENGTH.pack(len(data)) + data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosedError("the other side is gone") from error

    def receive_in_worker(self) -> FromPool:
        """Wait for a frame of the pool."""
        frame: FromPool = self._to_worker.decode(self._receive(None))
        return frame

    def receive_in_pool(self, *, deadline: float) -> FromWorker:
        """Wait for a frame of a worker; `TimeoutError` past the deadline."""
        frame: FromWorker = self._to_pool.decode(self._receive(deadline))
        return frame

    def wait_readable(self, timeout_s: float) -> bool:
        """Return whether a frame, or the end of the other side, arrives in time; reads nothing."""
        return self._poll(timeout_s) != 0

    @property
    def is_gone(self) -> bool:
        """Return whether the other side has ended; may be asked while another thread reads."""
        try:
            return bool(self._poll(0.0) & (select.POLLHUP | select.POLLERR | select.POLLNVAL))
        except ChannelClosedError:
            return True

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def _poll(self, timeout_s: float) -> int:
        poll = select.poll()  # not `select`, which knows the first 1,024 descriptors only
        try:
            poll.register(self._sock, select.POLLIN)
        except ValueError as error:  # closed by another thread
            raise ChannelClosedError("the channel is closed") from error
        return next((events for _, events in poll.poll(max(0.0, timeout_s) * 1000)), 0)

    def _receive(self, deadline: float | None) -> bytes:
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size, deadline))
        if length > MAX_FRAME_BYTES:
            raise ChannelClosedError(f"a frame of {length} bytes is more than the cap of {MAX_FRAME_BYTES}")
        return self._read(length, deadline)

    def _read(self, size: int, deadline: float | None) -> bytes:
        data = bytearray(size)
        view, position = memoryview(data), 0
        while position < size:
            self._set_timeout(deadline)
            try:
                count = self._sock.recv_into(view[position:])
            except ConnectionResetError as error:
                raise ChannelClosedError("the other side is gone") from error
            if count == 0:
                raise ChannelClosedError("the other side is gone")
            position += count
        return bytes(data)

    def _set_timeout(self, deadline: float | None) -> None:
        if deadline is None:
            self._sock.settimeout(None)
            return
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the deadline has passed")
        self._sock.settimeout(left_s)
