"""Load the images behind the manifest: 2-D slices in real units, ready to be cropped. Knows no tasks.

Axis letters: H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from medvista_ray.data.manifest import ManifestEntry
from medvista_ray.errors import MissingPackageError
from medvista_ray.images.dicom import read_dicom
from medvista_ray.images.geometry import downscale
from medvista_ray.images.windowing import DEFAULT_PRESET, PRESETS, apply_window, to_rgb
from medvista_ray.images.windowing import display_scale as display_scale

MAX_SIDE_PX = 768  # larger sources are shrunk once: an item is 252 px wide
SLICE_RANGE = (0.25, 0.75)  # the part of each axis of a volume that shows anatomy
SLICE_STEP = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceImage:
    """One 2-D image or one slice of a volume."""

    source: str  # manifest entry
    modality: str
    pixels: np.ndarray  # uint8 [H, W, 3] in the default window
    values: np.ndarray | None  # float32 [H, W]; HU, or MR on the display scale below; None for 8-bit sources
    spacing_mm: tuple[float, float] | None  # (row, column)
    plane: str | None


@cache
def load_source_images(entry: ManifestEntry) -> tuple[SourceImage, ...]:
    """Decode an entry: one image, or the slices of a volume in three planes."""
    path = entry.locate()
    if entry.kind == "nifti":
        return _volume_slices(entry, path)
    if entry.kind == "image":
        with Image.open(path) as image:
            return (_make(entry, np.array(image.convert("RGB")), None, None),)
    dicom = read_dicom(path)
    values = dicom.values
    if entry.region is not None:
        x0, y0, x1, y1 = entry.region
        values = values[y0:y1, x0:x1]
    return (_make(entry, values, dicom.spacing_mm, dicom.plane),)


def _make(
    entry: ManifestEntry, raw: np.ndarray, spacing_mm: tuple[float, float] | None, plane: str | None
) -> SourceImage:
    factor = max(1.0, max(raw.shape[:2]) / MAX_SIDE_PX)
    if spacing_mm is not None:
        spacing_mm = (spacing_mm[0] * factor, spacing_mm[1] * factor)
    if raw.ndim == 3:
        return SourceImage(
            source=entry.name,
            modality=entry.modality,
            pixels=downscale(raw, MAX_SIDE_PX),
            values=None,
            spacing_mm=spacing_mm,
            plane=plane,
        )
    values = raw.astype(np.float32) if entry.modality == "CT" else display_scale(raw)
    if factor > 1.0:
        size = (max(1, round(raw.shape[1] / factor)), max(1, round(raw.shape[0] / factor)))
        values = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BOX))
    return _grey_image(entry, values, spacing_mm, plane)


def _volume_slices(entry: ManifestEntry, path: Path) -> tuple[SourceImage, ...]:
    try:
        import nibabel
    except ImportError as error:
        raise MissingPackageError("nibabel is not installed: pip install 'medvista-ray[demo]'") from error
    image = nibabel.as_closest_canonical(nibabel.load(path))
    volume = display_scale(np.asarray(image.dataobj, dtype=np.float32))
    zooms = [float(side) for side in image.header.get_zooms()[:3]]
    slices = []
    for axis, plane in enumerate(("sagittal", "coronal", "axial")):
        rows, columns = [other for other in (2, 1, 0) if other != axis][:2]
        count = volume.shape[axis]
        for index in range(int(count * SLICE_RANGE[0]), int(count * SLICE_RANGE[1]), SLICE_STEP):
            values = np.rot90(np.moveaxis(volume, axis, 0)[index])  # superior or anterior up; `take` would copy it all
            slices.append(_grey_image(entry, np.ascontiguousarray(values), (zooms[rows], zooms[columns]), plane))
    return tuple(slices)


def _grey_image(
    entry: ManifestEntry, values: np.ndarray, spacing_mm: tuple[float, float] | None, plane: str | None
) -> SourceImage:
    center, width = PRESETS[DEFAULT_PRESET]
    return SourceImage(
        source=entry.name,
        modality=entry.modality,
        pixels=to_rgb(apply_window(values, center=center, width=width)),
        values=values,
        spacing_mm=spacing_mm,
        plane=plane,
    )
