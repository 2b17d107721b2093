"""The size that a compressed image says it has, read from its first markers without decoding it."""

from __future__ import annotations

import struct

_J2K_START = b"\xff\x4f\xff\x51"  # start of codestream, then image size: ISO/IEC 15444-1 A.4, A.5
_J2K_WITHIN = 4096  # bytes: a JP2 wrapper puts boxes before the codestream
_JPEG_START = b"\xff\xd8"
_NO_SIZE = {0xC4, 0xC8, 0xCC}  # of C0 to CF, those that are no start of a frame (ISO/IEC 10918-1 B.1.1.3)


def codestream_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) of JPEG, JPEG-LS or JPEG 2000 bytes; None where they say none, as RLE does."""
    return _jpeg_size(data) if data[:2] == _JPEG_START else _j2k_size(data)


def _j2k_size(data: bytes) -> tuple[int, int] | None:
    start = data.find(_J2K_START, 0, _J2K_WITHIN)
    if start < 0 or len(data) < start + 24:
        return None
    x1, y1, x0, y0 = struct.unpack_from(">4I", data, start + 8)
    return x1 - x0, y1 - y0


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    position = 2
    while position + 9 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if (0xC0 <= marker <= 0xCF and marker not in _NO_SIZE) or marker == 0xF7:  # F7: JPEG-LS
            height, width = struct.unpack_from(">2H", data, position + 5)
            return width, height
        (length,) = struct.unpack_from(">H", data, position + 2)
        position += 2 + max(2, length)
    return None
