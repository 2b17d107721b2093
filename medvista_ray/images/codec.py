"""Encode and decode images by an allow-list of formats. Knows bytes and arrays; not stores, tasks or tools.

Two kinds of pixels: 8-bit views (`uint8` [H, W, 3], PNG or JPEG) and stored values of more than 8 bits
(`int16` or `float32` [H, W], HU for CT, NumPy's `.npy` read without pickle).
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import struct
import zlib

import numpy as np
from numpy.lib import format as npy_format
from PIL import Image, ImageOps, UnidentifiedImageError

from medvista_ray.errors import ImageError
from medvista_ray.types.messages import NPY_MIME, PNG_MIME, ImageRef

MAX_PIXELS = 64 * 1024 * 1024  # checked before pixels are decoded
_PILLOW_FORMATS = {PNG_MIME: "PNG", "image/jpeg": "JPEG"}
_VALUE_DTYPES = ("<i2", "<f4")
_AXES = {2: "[H, W]", 3: "[X, Y, Z]"}
_DEEP_MODES = ("I", "F")  # Pillow's modes of more than 8 bits; converting them to RGB would clip, not scale
_NPY_MAGIC = b"\x93NUMPY\x01\x00"
# NumPy evaluates a header as Python; only the one form that it writes is read here.
_NPY_HEADER = re.compile(
    rb"\{'descr': '([^'\\]{1,16})', 'fortran_order': (True|False), 'shape': \(([0-9, ]{0,64})\), \} *\n"
)
# What parsers of damaged bytes raise.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)


def digest_of(data: bytes) -> str:
    """Return the SHA-256 of encoded bytes, hex."""
    return hashlib.sha256(data).hexdigest()


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode uint8 pixels [H, W] or [H, W, 3]; fast compression, since the bytes live for one run."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise ImageError(f"a PNG is made of uint8 pixels [H, W] or [H, W, 3], got {pixels.dtype} {pixels.shape}")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def encode_npy(values: np.ndarray) -> bytes:
    """Encode stored values: whole numbers as int16, or `ImageError` where they do not fit; else float32."""
    is_whole = values.dtype.kind in "iu"
    if is_whole and values.size and (values.min() < -32768 or values.max() > 32767):
        raise ImageError(f"stored values from {values.min()} to {values.max()} do not fit int16; give float32")
    buffer = io.BytesIO()
    contiguous = np.ascontiguousarray(values, dtype="<i2" if is_whole else "<f4")
    npy_format.write_array(buffer, contiguous, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def decode(data: bytes, mime: str, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode to uint8 [H, W, 3], upright as EXIF says, or to stored values [H, W] for `.npy`.

    Grey, palette and CMYK become RGB; of an image with an alpha channel the colours are kept and alpha is dropped.

    Raises:
        ImageError: the bytes are no such image, are damaged, animated, of more than 8 bits (PNG), or too large; sizes
            are checked before pixels are decoded.
    """
    if mime == NPY_MIME:
        return _decode_npy(data, max_pixels)
    if mime not in _PILLOW_FORMATS:
        raise ImageError(f"format {mime!r} is not allowed; use one of {sorted([*_PILLOW_FORMATS, NPY_MIME])}")
    try:
        with Image.open(io.BytesIO(data), formats=[_PILLOW_FORMATS[mime]]) as image:
            if not 1 <= image.width * image.height <= max_pixels:
                raise ImageError(f"{image.width} x {image.height} pixels are not between 1 and the cap of {max_pixels}")
            if getattr(image, "is_animated", False) and image.format == "PNG":
                raise ImageError("an animated PNG has no single picture; store the frame that counts")
            if image.mode.startswith(_DEEP_MODES):
                raise ImageError(f"{mime} of more than 8 bits ({image.mode}) is not allowed; store the values as .npy")
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except UnidentifiedImageError as error:  # its text names a buffer of ours
        raise ImageError(f"not a readable {mime} image") from error
    except (*DAMAGE, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"not a readable {mime} image: {error}") from error


def _decode_npy(data: bytes, max_pixels: int) -> np.ndarray:
    values = decode_npy_array(data, num_axes=2, max_values=max_pixels)
    if not np.isfinite(values).all():
        raise ImageError("a stored value is not a finite number")
    return values


def decode_npy_array(data: bytes, *, num_axes: int, max_values: int) -> np.ndarray:
    """Return the int16 or float32 values of an npy array without copying them; its size is checked first."""
    if data[: len(_NPY_MAGIC)] != _NPY_MAGIC:
        raise ImageError("not an npy array of version 1.0")
    start = len(_NPY_MAGIC) + 2
    end = start + int.from_bytes(data[start - 2 : start], "little")
    header = _NPY_HEADER.fullmatch(data[start:end])
    if header is None:
        raise ImageError("not a readable npy array: its header is not one that NumPy writes for plain numbers")
    dtype, shape = header[1].decode("latin-1"), tuple(int(side) for side in header[3].replace(b",", b" ").split())
    if len(shape) != num_axes or header[2] == b"True" or dtype not in _VALUE_DTYPES:
        raise ImageError(
            f"stored values are int16 or float32 {_AXES[num_axes]} in C order, got {dtype} {shape}: "
            "save array.astype('<f4')"
        )
    num_values = math.prod(shape)
    if not 1 <= num_values <= max_values:
        raise ImageError(f"{' x '.join(map(str, shape[::-1]))} pixels are not between 1 and the cap of {max_values}")
    num_bytes = num_values * np.dtype(dtype).itemsize
    if len(data) - end != num_bytes:
        raise ImageError(f"npy payload has {len(data) - end} bytes, its header says {num_bytes}")
    return np.frombuffer(data, dtype, offset=end).reshape(shape)


def make_ref(
    data: bytes,
    *,
    mime: str,
    width: int,
    height: int,
    spacing_mm: tuple[float, float] | None = None,
    modality: str | None = None,
) -> ImageRef:
    """Make the reference of encoded bytes."""
    return ImageRef(
        digest=digest_of(data), width=width, height=height, mime=mime, spacing_mm=spacing_mm, modality=modality
    )
