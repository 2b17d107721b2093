"""Encode and decode images by an allow-list of formats. Knows bytes and arrays; not stores, tasks or tools.

Two kinds of pixels: 8-bit views (`uint8` [H, W, 3], PNG or JPEG) and stored values of more than 8 bits
(`int16` or `float32` [H, W], HU for CT, NumPy's `.npy` read without pickle).
"""

from __future__ import annotations

import hashlib
import io

import numpy as np
from numpy.lib import format as npy_format
from PIL import Image

from medvista_ray.errors import ImageError
from medvista_ray.types.messages import NPY_MIME, PNG_MIME, ImageRef

MAX_PIXELS = 64 * 1024 * 1024  # checked before pixels are decoded
_PILLOW_FORMATS = {PNG_MIME: "PNG", "image/jpeg": "JPEG"}
_VALUE_DTYPES = ("<i2", "<f4")


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
    """Encode stored values [H, W] (int16 or float32), little-endian."""
    dtype = "<i2" if values.dtype.kind in "iu" else "<f4"
    buffer = io.BytesIO()
    npy_format.write_array(buffer, np.ascontiguousarray(values, dtype=dtype), allow_pickle=False)
    return buffer.getvalue()


def decode(data: bytes, mime: str, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode to uint8 [H, W, 3], or to stored values [H, W] for `.npy`; `ImageError` says what is wrong."""
    if mime == NPY_MIME:
        return _decode_npy(data, max_pixels)
    if mime not in _PILLOW_FORMATS:
        raise ImageError(f"format {mime!r} is not allowed; use one of {sorted([*_PILLOW_FORMATS, NPY_MIME])}")
    try:
        with Image.open(io.BytesIO(data), formats=[_PILLOW_FORMATS[mime]]) as image:
            if image.width * image.height > max_pixels:
                raise ImageError(f"{image.width} x {image.height} pixels are more than the cap of {max_pixels}")
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"not a readable {mime} image: {error}") from error


def _decode_npy(data: bytes, max_pixels: int) -> np.ndarray:
    buffer = io.BytesIO(data)
    try:
        version = npy_format.read_magic(buffer)
        if version != (1, 0):
            raise ImageError(f"npy version {version} is not allowed; write version 1.0")
        shape, fortran, dtype = npy_format.read_array_header_1_0(buffer)
    except ValueError as error:
        raise ImageError(f"not a readable npy array: {error}") from error
    if len(shape) != 2 or fortran or dtype.str not in _VALUE_DTYPES:
        raise ImageError(f"stored values are int16 or float32 [H, W] in C order, got {dtype.str} {shape}")
    if shape[0] * shape[1] > max_pixels or shape[0] * shape[1] < 1:
        raise ImageError(f"{shape[1]} x {shape[0]} pixels are not between 1 and the cap of {max_pixels}")
    payload = data[buffer.tell() :]
    if len(payload) != shape[0] * shape[1] * dtype.itemsize:
        raise ImageError(
            f"npy payload has {len(payload)} bytes, its header says {shape[0] * shape[1] * dtype.itemsize}"
        )
    return np.frombuffer(payload, dtype).reshape(shape)


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
