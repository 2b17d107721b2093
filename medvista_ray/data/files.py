"""Read the files that a row names: images, volumes, masks. Knows arrays and bytes; not rows, tasks or splits.

An image is PNG, JPEG, `.npy` or, under any other name, DICOM. A volume is NIfTI. A mask is PNG.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from medvista_ray.errors import ImageError, MissingPackageError
from medvista_ray.images.codec import (
    DAMAGE,
    MAX_PIXELS,
    decode,
    digest_of,
    encode_npy,
    encode_png,
    make_ref,
)
from medvista_ray.images.dicom import read_dicom
from medvista_ray.images.metadata import strip_metadata
from medvista_ray.images.volumes import MAX_VOXELS, encode_volume
from medvista_ray.images.windowing import display_scale
from medvista_ray.types.messages import NPY_MIME, PNG_MIME, HeaderValue, ImageRef, VolumeRef

MIMES = {".png": PNG_MIME, ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".npy": NPY_MIME}
VOLUME_SUFFIXES = (".nii", ".nii.gz")
_MASK_MODES = ("1", "L", "P", "I", "I;16", "RGB")  # of Pillow; with alpha it is unclear what counts
_CT = "CT"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """One image as it was read."""

    data: bytes  # as the digest of the reference counts them
    ref: ImageRef
    header: Mapping[str, HeaderValue] = field(default_factory=dict)  # allow-listed DICOM fields


def is_volume(name: str) -> bool:
    """Return whether a file is a volume, by its name."""
    return name.lower().endswith(VOLUME_SUFFIXES)


def read_image(path: Path, *, spacing_mm: tuple[float, float] | None = None, modality: str | None = None) -> ImageFile:
    """Read and check an image, the picture alone.

    What is given here fills in for a file that does not say it, spacing even if it does.

    Raises:
        ImageError: what is wrong with the file.
    """
    if is_volume(path.name):
        raise ImageError("a NIfTI file is a volume: name it under `volumes`")
    mime = MIMES.get(path.suffix.lower())
    if mime is None:
        return read_dicom_image(path, spacing_mm=spacing_mm)
    data, mime = strip_metadata(path.read_bytes(), mime)
    height, width = decode(data, mime).shape[:2]
    ref = make_ref(data, mime=mime, width=width, height=height, spacing_mm=spacing_mm, modality=modality)
    return ImageFile(data=data, ref=ref)


def read_dicom_image(path: Path, *, spacing_mm: tuple[float, float] | None = None) -> ImageFile:
    """Read a DICOM file as a PNG (colour) or as stored values: HU for CT, the display scale for all other units."""
    dicom = read_dicom(path)
    if dicom.values.ndim == 3:
        data, mime = encode_png(dicom.values), PNG_MIME
    else:
        # Only CT has units that the window presets are made for; everything else is put on their scale.
        data, mime = encode_npy(dicom.values if dicom.modality == _CT else display_scale(dicom.values)), NPY_MIME
    height, width = dicom.values.shape[:2]
    spacing_mm = spacing_mm or dicom.spacing_mm
    ref = make_ref(data, mime=mime, width=width, height=height, spacing_mm=spacing_mm, modality=dicom.modality)
    return ImageFile(data=data, ref=ref, header=dict(dicom.header))


def read_volume(path: Path, *, modality: str | None = None) -> tuple[bytes, VolumeRef]:
    """Read a NIfTI file and bring it to RAS order: CT as it is stored (HU), all else on the display scale.

    Raises:
        ImageError: what is wrong with the file.
    """
    try:
        import nibabel
        from nibabel.filebasedimages import ImageFileError
        from nibabel.spatialimages import HeaderDataError
    except ImportError as error:
        raise MissingPackageError("nibabel is not installed: pip install medvista-ray") from error
    try:
        image = nibabel.load(path)
        if len(image.shape) != 3 or not 1 <= math.prod(image.shape) <= MAX_VOXELS:
            shape = " x ".join(map(str, image.shape))
            raise ImageError(f"a volume has three axes and 1 to {MAX_VOXELS} voxels, this one is {shape}")
        canonical = nibabel.as_closest_canonical(image)
        values = np.asarray(canonical.dataobj)
        spacing_mm = tuple(float(side) for side in canonical.header.get_zooms()[:3])
    except (*DAMAGE, ImageFileError, HeaderDataError, zlib.error, struct.error) as error:
        raise ImageError(f"not a readable NIfTI volume: {' '.join(str(error).split())[:160]}") from error
    if not all(0 < side < math.inf for side in spacing_mm):
        raise ImageError(f"voxel sizes must be > 0 millimetres, got {list(spacing_mm)}")
    data = encode_volume(_stored_values(values, is_ct=modality == _CT))
    x, y, z = values.shape
    return data, VolumeRef(
        digest=digest_of(data),
        shape=(x, y, z),
        spacing_mm=(spacing_mm[0], spacing_mm[1], spacing_mm[2]),
        modality=modality,
    )


def _stored_values(values: np.ndarray, *, is_ct: bool) -> np.ndarray:
    """Return int16 [X, Y, Z] where whole numbers fit it, else float32; a voxel that is not finite is refused."""
    if values.dtype.kind not in "iuf":
        raise ImageError(f"voxels are whole or real numbers, got {values.dtype}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ImageError("a voxel is not a finite number")
    if not is_ct:
        return display_scale(values.astype(np.float32))
    is_whole = values.dtype.kind in "iu" or bool((values == np.rint(values)).all())
    fits = is_whole and values.min() >= -32768 and values.max() <= 32767
    return values.astype(np.int16 if fits else np.float32)


def read_mask(path: Path, *, label: int | None, size_px: tuple[int, int], may_be_empty: bool = False) -> np.ndarray:
    """Read a mask, bool [H, W]: pixels that are not 0, or those of one value.

    Args:
        path: PNG.
        label: the value that counts; None = every value but 0.
        size_px: (width, height) of the image that it belongs to.
        may_be_empty: return a mask without a pixel, instead of refusing it.

    Raises:
        ImageError: what is wrong with the file.
    """
    values = read_labels(path)
    if (values.shape[1], values.shape[0]) != size_px:
        raise ImageError(f"{values.shape[1]} x {values.shape[0]} pixels, but its image has {size_px[0]} x {size_px[1]}")
    mask: np.ndarray = values != 0 if label is None else values == label
    if not mask.any() and not may_be_empty:
        raise ImageError("no pixel is marked" if label is None else f"no pixel has the value {label}")
    return mask


def read_labels(path: Path) -> np.ndarray:
    """Read the values of a mask, int [H, W]; of a palette the indices, of a colour image 1 where it is not black."""
    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"{image.width} x {image.height} pixels are more than the cap of {MAX_PIXELS}")
            if image.mode not in _MASK_MODES:
                raise ImageError(f"a mask is a PNG of one channel, or of three, got mode {image.mode}")
            values: np.ndarray = np.array(image)
    except (*DAMAGE, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("not a readable PNG") from error
    labels = values.max(axis=2) > 0 if values.ndim == 3 else values
    return np.asarray(labels, dtype=np.int32)
