"""The frames between a pool and its workers: msgpack behind a 4-byte length, on one socket pair. Never pickle.

pool -> worker: Setup once, then Call; Blob answers a Need
worker -> pool: Ready once, then Done for each Call; Need before it, for each image that the tool opens
"""

from __future__ import annotations

import socket
import struct
import time
from typing import Any

import msgspec
import numpy as np

from medvista_ray.images.geometry import Transform
from medvista_ray.tools.base import CallKey, ImageRecord
from medvista_ray.tools.views import View
from medvista_ray.types.tool_calls import ToolFailure

MAX_FRAME_BYTES = 512 * 2**20
_LENGTH = struct.Struct("<I")


class Setup(msgspec.Struct, tag=True, frozen=True):
    """The tools that a worker makes before it says that it is ready."""

    targets: tuple[str, ...]


class Call(msgspec.Struct, tag=True, frozen=True):
    """One call. Arguments travel as JSON text, which carries every value that a model can write."""

    tool: str
    arguments: str
    records: tuple[ImageRecord, ...]
    key: CallKey


class Blob(msgspec.Struct, tag=True, frozen=True):
    """The bytes that a worker asked for."""

    data: bytes


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


class ViewFrame(msgspec.Struct, tag=True, frozen=True):
    """A `View`."""

    view: View


class Done(msgspec.Struct, tag=True, frozen=True):
    """The end of a call."""

    text: str
    images: tuple[ViewFrame | PictureFrame, ...]
    failure: ToolFailure | None
    error: str


FromPool = Setup | Call | Blob
FromWorker = Ready | Need | Done


class ChannelClosedError(ConnectionError):
    """The other side is gone."""


def _to_plain(value: Any) -> Any:
    """Let NumPy numbers through, which tools mix with Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be sent")


class Channel:
    """Frames over a socket; one reader, one writer. Deadlines are absolute, on `time.monotonic`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._encoder = msgspec.msgpack.Encoder(enc_hook=_to_plain)
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

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

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
