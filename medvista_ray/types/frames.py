"""A stream of records in a file: length, checksums, payload, one frame after another.

Owns the frame; knows nothing of what is inside. Layout, little-endian: u32 length of the payload, u32 crc32 of the
payload, u32 crc32 of these first eight bytes, payload.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from medvista_ray.errors import WireError

MAX_PAYLOAD_BYTES = 256 * 2**20  # a group of 64 episodes of 32k tokens needs 20 MiB
_HEADER = struct.Struct("<III")


def write_frame(file: BinaryIO, payload: bytes) -> int:
    """Append one frame in one write; return its size in bytes, header included."""
    if not 0 < len(payload) <= MAX_PAYLOAD_BYTES:
        raise WireError(f"a frame holds 1 to {MAX_PAYLOAD_BYTES} bytes, got {len(payload)}")
    sizes = struct.pack("<II", len(payload), zlib.crc32(payload))
    frame = sizes + struct.pack("<I", zlib.crc32(sizes)) + payload
    if (num_written := file.write(frame)) != len(frame):
        raise WireError(f"only {num_written} of {len(frame)} bytes of a frame could be written")
    return len(frame)


def iter_frames(file: BinaryIO) -> Iterator[bytes]:
    """Yield the payloads from here on; a torn last frame ends the file, a damaged one is a `WireError` with its offset.

    The header has a checksum of its own, so that a damaged length is never taken for a torn end.
    """
    offset = file.tell()
    while len(header := file.read(_HEADER.size)) == _HEADER.size:
        length, payload_crc, header_crc = _HEADER.unpack(header)
        if zlib.crc32(header[:8]) != header_crc or not 0 < length <= MAX_PAYLOAD_BYTES:
            raise WireError(f"the frame at byte {offset} is damaged: its header does not match its checksum")
        payload = file.read(length)
        if len(payload) < length:
            return
        if zlib.crc32(payload) != payload_crc:
            raise WireError(f"the frame at byte {offset} is damaged: its {length} bytes do not match their checksum")
        yield payload
        offset += _HEADER.size + length


def cut_torn_tail(file: BinaryIO) -> int:
    """Cut a torn last frame off a file open for reading and writing, and stand at its end; return the bytes cut."""
    file.seek(0)
    end = sum(_HEADER.size + len(payload) for payload in iter_frames(file))
    num_cut = file.seek(0, 2) - end
    file.truncate(end)
    file.seek(end)
    return num_cut
