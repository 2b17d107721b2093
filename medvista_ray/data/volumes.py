"""Load the volumes behind the manifest in canonical order (RAS+), and shrink them by whole blocks."""

from __future__ import annotations

from functools import cache

import numpy as np

from medvista_ray.data.manifest import ManifestEntry
from medvista_ray.errors import MissingPackageError


@cache
def load_canonical(entry: ManifestEntry) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Return the values of a NIfTI file [X, Y, Z], read-only, and its spacing in mm."""
    try:
        import nibabel
    except ImportError as error:
        raise MissingPackageError("nibabel is not installed: pip install medvista-ray") from error
    image = nibabel.as_closest_canonical(nibabel.load(entry.locate()))
    values = np.asarray(image.dataobj)
    values.flags.writeable = False
    x, y, z = (float(side) for side in image.header.get_zooms()[:3])
    return values, (x, y, z)


def shrink(values: np.ndarray, factor: int) -> np.ndarray:
    """Return the means of blocks of factor^3 voxels, float32 [X // factor, Y // factor, Z // factor]."""
    sides = [side // factor for side in values.shape]
    x, y, z = (side * factor for side in sides)
    blocks = values[:x, :y, :z].reshape(sides[0], factor, sides[1], factor, sides[2], factor)
    return np.asarray(blocks.mean(axis=(1, 3, 5), dtype=np.float32))
