"""Read a user's image file of any allowed format into the bytes that a task holds: PNG, JPEG or `.npy`.

Formats are told by content, whatever the name. One file is one picture: an animated PNG, a GIF and a TIFF of several
pages are refused, since nobody said which picture counts; of a multi-frame DICOM file the first frame is read, and
`number_of_frames` in its header says that there are more. Knows no tasks.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from medvista_ray.errors import ImageError
from medvista_ray.images.codec import DAMAGE, MAX_PIXELS, decode, encode_npy, encode_png
from medvista_ray.images.dicom import read_dicom
from medvista_ray.images.dicom_reader import MAX_FILE_BYTES
from medvista_ray.images.metadata import strip_metadata
from medvista_ray.images.windowing import display_scale
from medvista_ray.types.messages import NPY_MIME, PNG_MIME, HeaderValue

FORMATS = "PNG, JPEG, TIFF, BMP, .npy, DICOM (with DICM at byte 128); of volumes NIfTI (.nii, .nii.gz)"
_JPEG_MIME = "image/jpeg"
_BEGINNINGS: Mapping[bytes, str] = MappingProxyType(
    {
        b"\x89PNG\r\n\x1a\n": "PNG",
        b"\xff\xd8\xff": "JPEG",
        b"\x93NUMPY": "npy",
        b"II*\0": "TIFF",
        b"MM\0*": "TIFF",
        b"BM": "BMP",
        b"GIF8": "GIF",
    }
)
_BY_SUFFIX: Mapping[str, str] = MappingProxyType(
    {
        ".png": "PNG",
        ".jpg": "JPEG",
        ".jpeg": "JPEG",
        ".npy": "npy",
        ".tif": "TIFF",
        ".tiff": "TIFF",
        ".bmp": "BMP",
        ".gif": "GIF",
    }
)
_KEPT_MIMES: Mapping[str, str] = MappingProxyType({"PNG": PNG_MIME, "JPEG": _JPEG_MIME, "npy": NPY_MIME})
_DEEP_MODES = ("I", "F")  # of Pillow: one channel of more than 8 bits
_CT = "CT"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageFile:
    """One image as it was read."""

    data: bytes  # of `mime`, as the digest of a reference counts them
    mime: str
    width: int  # pixels
    height: int  # pixels
    spacing_mm: tuple[float, float] | None = None  # (row, column)
    modality: str | None = None  # DICOM code
    header: Mapping[str, HeaderValue] = field(default_factory=dict)  # allow-listed DICOM fields


def read_image_file(path: Path) -> ImageFile:
    """Read an image: by its first bytes DICOM, PNG, JPEG, TIFF, BMP or `.npy`, else by its suffix.

    CT values of DICOM stay HU; other values of more than 8 bits are put on the display scale, see `display_scale`.

    Raises:
        ImageError: what is wrong with the file.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ImageError(f"{path.name} has more than the cap of {MAX_FILE_BYTES} bytes")
        with path.open("rb") as file:
            beginning = file.read(132)
        # a DICOM file may begin as a TIFF does, so that both kinds of program can open it
        is_dicom = beginning[128:] == b"DICM"
        kind = None if is_dicom else _kind_of(beginning) or _BY_SUFFIX.get(path.suffix.lower())
        data = b"" if kind is None else path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path.name} cannot be read: {error.strerror}") from error
    if kind is None and not is_dicom:
        raise ImageError(f"{path.name} is in none of the formats that are read: {FORMATS}")
    return _read_dicom_file(path) if kind is None else _read_raster(data, kind)


def read_image_bytes(data: bytes) -> ImageFile:
    """Read the bytes of a PNG, JPEG, TIFF, BMP or `.npy` as `read_image_file` does; `ImageError` says what is wrong."""
    kind = _kind_of(data)
    if kind is None:
        raise ImageError("these bytes are no PNG, JPEG, TIFF, BMP or npy array")
    return _read_raster(data, kind)


def _kind_of(data: bytes) -> str | None:
    return next((kind for beginning, kind in _BEGINNINGS.items() if data.startswith(beginning)), None)


def _read_dicom_file(path: Path) -> ImageFile:
    image = read_dicom(path)
    height, width = image.values.shape[:2]
    if image.values.ndim == 3:
        data, mime = encode_png(image.values), PNG_MIME
    else:
        # Only CT has units that the window presets are made for; everything else is put on their scale.
        data, mime = encode_npy(image.values if image.modality == _CT else display_scale(image.values)), NPY_MIME
    return ImageFile(
        data=data,
        mime=mime,
        width=width,
        height=height,
        spacing_mm=image.spacing_mm,
        modality=image.modality,
        header=image.header,
    )


def _read_raster(data: bytes, kind: str) -> ImageFile:
    if kind == "GIF":
        raise ImageError("GIF is not allowed: it may be animated; store the picture as PNG")
    values = None if kind in ("JPEG", "npy") else _deep_values(data, kind)
    if values is not None:
        data, mime = encode_npy(display_scale(values)), NPY_MIME
    elif kind in _KEPT_MIMES:
        data, mime = strip_metadata(data, _KEPT_MIMES[kind])
        values = decode(data, mime)
    else:
        values = _decode_other(data, kind)
        data, mime = encode_png(values), PNG_MIME
    return ImageFile(data=data, mime=mime, width=values.shape[1], height=values.shape[0])


def _deep_values(data: bytes, kind: str) -> np.ndarray | None:
    """Return the values of a grey image of more than 8 bits, float32 [H, W]; None for 8 bits or colour."""
    with _opened(data, kind) as image:
        if not image.mode.startswith(_DEEP_MODES):
            return None
        _check(image)
        values = np.asarray(image, dtype=np.float32)
    if not np.isfinite(values).all():
        raise ImageError("a stored value is not a finite number")
    return values


def _decode_other(data: bytes, kind: str) -> np.ndarray:
    """Return uint8 [H, W, 3] of a format that tasks do not hold."""
    with _opened(data, kind) as image:
        _check(image)
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


@contextmanager
def _opened(data: bytes, kind: str) -> Iterator[Image.Image]:
    """Open an image of one format; whatever its bytes do meanwhile is an `ImageError`."""
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            yield image
    except UnidentifiedImageError as error:  # its text names a buffer of ours
        raise ImageError(f"not a readable {kind} image") from error
    except (*DAMAGE, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"not a readable {kind} image: {error}") from error


def _check(image: Image.Image) -> None:
    """Refuse what has no pixel, too many of them, or several pictures, before any is decoded."""
    if not 1 <= image.width * image.height <= MAX_PIXELS:
        raise ImageError(f"{image.width} x {image.height} pixels are not between 1 and the cap of {MAX_PIXELS}")
    if image.format == "PNG":
        return  # `decode` looks for an animation
    try:
        image.seek(1)
    except EOFError:
        return
    raise ImageError(f"a {image.format} of several pictures; store the one that counts in a file of its own")
