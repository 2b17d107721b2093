"""Volumes: 3-D arrays of stored values in canonical order, their bytes, and their slices the way films are read.

Axes x, y, z run to the patient's right, anterior and superior (RAS+, as NIfTI says it). A slice is shown in the
radiological convention: axial and coronal slices with the patient's right on the left, sagittal ones with anterior on
the left. Knows arrays; no files, no tools.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medvista_ray.errors import ImageError
from medvista_ray.images.codec import decode_npy_array, encode_npy
from medvista_ray.types.messages import Plane

MAX_VOXELS = 512 * 1024 * 1024  # checked before an array is made
_AXES: dict[Plane, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
# letters of the left, right, top and bottom edge of a slice
EDGES: dict[Plane, tuple[str, str, str, str]] = {
    "axial": ("R", "L", "A", "P"),
    "coronal": ("R", "L", "S", "I"),
    "sagittal": ("A", "P", "S", "I"),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VolumeSlice:
    """One slice, or a projection of several, as it is shown."""

    values: np.ndarray  # int16 or float32 [H, W]
    spacing_mm: tuple[float, float]  # (row, column)


def encode_volume(values: np.ndarray) -> bytes:
    """Encode [X, Y, Z]: whole numbers as int16, or `ImageError` where they do not fit; else float32."""
    if values.ndim != 3 or values.size == 0:
        raise ImageError(f"a volume has three axes and a voxel, got shape {list(values.shape)}")
    return encode_npy(values)


def decode_volume(data: bytes, *, max_voxels: int = MAX_VOXELS) -> np.ndarray:
    """Return the values [X, Y, Z] without copying them; `ImageError` says what is wrong."""
    return decode_npy_array(data, num_axes=3, max_values=max_voxels)


def num_slices(shape: tuple[int, int, int], plane: Plane) -> int:
    """Count the slices of a plane; index 0 is the leftmost, most posterior or most inferior one."""
    return shape[_AXES[plane]]


def projected_slices(count: int, index: int, num_projected: int) -> range:
    """Return the slices, of `count`, that a projection of `num_projected` around an index joins; fewer at the ends."""
    first = index - (num_projected - 1) // 2
    return range(max(0, first), min(count, first + num_projected))


def cut_slice(
    volume: np.ndarray, spacing_mm: tuple[float, float, float], *, plane: Plane, index: int, num_projected: int = 1
) -> VolumeSlice:
    """Cut the slice of an index, or the maximum of `num_projected` slices around it, and lay it down as a film.

    Raises:
        ImageError: there is no such slice, or it holds a value that is not finite.
    """
    axis = _AXES[plane]
    count = volume.shape[axis]
    if not 0 <= index < count:
        raise ImageError(f"{plane} slices are 0 to {count - 1}, there is no {index}")
    joined = projected_slices(count, index, num_projected)
    slab = np.moveaxis(volume, axis, 0)[joined.start : joined.stop]
    values = slab[0] if num_projected == 1 else slab.max(axis=0)  # [other axes in the order x, y, z]
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ImageError("a stored value is not a finite number")
    # The first of the two axes grows along the columns, the second upwards; both run to the left of the film.
    film = values.T[::-1, ::-1]
    column_mm, row_mm = (side for other, side in enumerate(spacing_mm) if other != axis)
    return VolumeSlice(values=np.ascontiguousarray(film), spacing_mm=(row_mm, column_mm))
