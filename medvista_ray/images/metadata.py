"""Take out of PNG and JPEG bytes what is not picture: texts, EXIF, thumbnails, profiles. They may name a person.

Lossless: the compressed picture is copied as it is. Where EXIF says that a picture is not upright, it is encoded anew.
Sources: PNG (W3C) 5.6, JPEG (ISO/IEC 10918-1) annex B, JFIF 1.02, Adobe TN 5116 for the segment behind CMYK and YCCK.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator

from PIL import Image

from medvista_ray.errors import ImageError
from medvista_ray.images.codec import DAMAGE, MAX_PIXELS, decode, encode_png
from medvista_ray.types.messages import PNG_MIME

_JPEG_MIME = "image/jpeg"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_PNG_TOLD = {b"eXIf", b"tEXt", b"zTXt", b"iTXt"}  # where Pillow looks for an orientation
_ANIMATION = b"acTL"
_SOI, _EOI, _SOS, _APP0, _APP1, _APP14 = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xEE
_JPEG_KEPT = {*range(0xC0, 0xD0), _SOS, 0xDB, 0xDC, 0xDD}  # frames, tables, scans
_JFIF_BYTES, _ADOBE_BYTES = 14, 12  # up to the size of a thumbnail; up to the colour transform
_AFTER_SCAN = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")  # the next marker that is no restart
_ORIENTATION = 0x0112  # of EXIF
_UPRIGHT = (None, 1)


def strip_metadata(data: bytes, mime: str) -> tuple[bytes, str]:
    """Return a PNG or JPEG as bytes that hold its picture alone, and their type; other types as they are.

    Raises:
        ImageError: the bytes are no such image.
    """
    if mime not in (PNG_MIME, _JPEG_MIME):
        return data, mime
    try:
        parts = list(_png_chunks(data) if mime == PNG_MIME else _jpeg_segments(data))
    except (ValueError, struct.error, IndexError):  # Pillow may read more than stands in the books
        return encode_png(decode(data, mime)), PNG_MIME
    names = {name for name, _ in parts}
    if _ANIMATION in names:
        decode(data, mime)  # says what is wrong with an animation
    if names & (_PNG_TOLD | {_APP1}) and _orientation(data, mime) not in _UPRIGHT:
        return encode_png(decode(data, mime)), PNG_MIME
    stripped = _join_png(parts) if mime == PNG_MIME else b"".join(part for _, part in parts)
    return (data if stripped == data else stripped), mime


def strip_png(data: bytes) -> bytes:
    """Return a PNG whose values count, as those of a mask do, without metadata; nothing is turned."""
    try:
        return _join_png(list(_png_chunks(data)))
    except (ValueError, struct.error) as error:
        raise ImageError(f"not a readable PNG: {error}") from error


def _join_png(chunks: list[tuple[object, bytes]]) -> bytes:
    return b"".join((_PNG_START, *(chunk for name, chunk in chunks if name in _PNG_KEPT)))


def _png_chunks(data: bytes) -> Iterator[tuple[object, bytes]]:
    """Yield the name and the bytes of each chunk up to the end of the picture."""
    if not data.startswith(_PNG_START):
        raise ValueError("not a PNG")
    start = len(_PNG_START)
    while True:
        (length,) = struct.unpack_from(">I", data, start)
        name, end = data[start + 4 : start + 8], start + 12 + length
        if end > len(data):
            raise ValueError(f"chunk {name!r} is cut off")
        yield name, data[start:end]
        if name == b"IEND":
            return
        start = end


def _jpeg_segments(data: bytes) -> Iterator[tuple[object, bytes]]:
    """Yield the marker and the bytes of each segment up to the end of the picture; b"" for those that go."""
    if data[:2] != bytes((0xFF, _SOI)):
        raise ValueError("not a JPEG")
    yield _SOI, data[:2]
    start = 2
    while True:
        if data[start] != 0xFF:
            raise ValueError(f"no marker at byte {start}")
        while data[start + 1] == 0xFF:  # fill bytes
            start += 1
        marker = data[start + 1]
        if marker == _EOI:
            yield marker, data[start : start + 2]
            return
        (length,) = struct.unpack_from(">H", data, start + 2)
        end = start + 2 + max(2, length)
        if marker == _SOS:
            following = _AFTER_SCAN.search(data, end)
            if following is None:
                raise ValueError("a scan is cut off")
            end = following.start()
        yield marker, _kept_segment(marker, data[start:end])
        start = end


def _kept_segment(marker: int, segment: bytes) -> bytes:
    """Return what is kept of a segment: JFIF and Adobe say in which colours the picture is coded."""
    payload = segment[4:]
    if marker == _APP0 and payload.startswith(b"JFIF\0") and len(payload) >= _JFIF_BYTES:
        payload = payload[: _JFIF_BYTES - 2] + b"\0\0"  # a thumbnail of 0 x 0 pixels
    elif marker == _APP14 and payload.startswith(b"Adobe") and len(payload) >= _ADOBE_BYTES:
        payload = payload[:_ADOBE_BYTES]
    else:
        return segment if marker in _JPEG_KEPT else b""
    return segment[:2] + struct.pack(">H", len(payload) + 2) + payload


def _orientation(data: bytes, mime: str) -> int | None:
    """Return what Pillow takes for the orientation, as `decode` does."""
    try:
        with Image.open(io.BytesIO(data), formats=[mime.partition("/")[2].upper()]) as image:
            if image.width * image.height > MAX_PIXELS:
                return None  # `decode` refuses it
            found = image.getexif().get(_ORIENTATION)
    except (*DAMAGE, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"not a readable {mime} image: {error}") from error
    return found if found in range(1, 9) else None
