"""Read DICOM at the border: stored values in real units plus an allow-list of non-identifying facts.

Identifiers, private tags and overlays are never read into a record. Values come through pydicom's own LUT functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medvista_ray.errors import ImageError

_PLANES = ("sagittal", "coronal", "axial")  # the plane whose normal is x, y, z of the patient


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DicomImage:
    """One frame of a DICOM file."""

    values: np.ndarray  # float32 [H, W] in the unit of the modality LUT (HU for CT), or uint8 [H, W, 3] for colour
    modality: str  # DICOM code
    spacing_mm: tuple[float, float] | None  # (row, column)
    plane: str | None  # axial, coronal, sagittal; None when oblique or unknown
    bits_stored: int


def read_dicom(path: Path, *, frame: int = 0) -> DicomImage:
    """Read one frame; MONOCHROME1 is turned the right way round; `ImageError` says what is wrong."""
    import pydicom
    from pydicom.errors import InvalidDicomError
    from pydicom.pixels import apply_modality_lut

    try:
        dataset = pydicom.dcmread(path)
        pixels = dataset.pixel_array
    except (InvalidDicomError, OSError, AttributeError, RuntimeError, ValueError, NotImplementedError) as error:
        raise ImageError(f"{path.name} is not a DICOM image that can be decoded: {str(error)[:160]}") from error
    samples = int(dataset.get("SamplesPerPixel", 1))
    if pixels.ndim == (4 if samples == 3 else 3):
        pixels = pixels[frame]
    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    if samples == 3:
        values = pixels.astype(np.uint8)  # pydicom has turned YBR into RGB already
    else:
        values = np.asarray(apply_modality_lut(pixels, dataset), dtype=np.float32)
        if photometric == "MONOCHROME1":
            values = values.max() + values.min() - values
    return DicomImage(
        values=values,
        modality=str(dataset.get("Modality", "OT")),
        spacing_mm=_spacing(dataset),
        plane=plane_of(dataset.get("ImageOrientationPatient")),
        bits_stored=int(dataset.get("BitsStored", 8)),
    )


def _spacing(dataset: Any) -> tuple[float, float] | None:
    value = dataset.get("PixelSpacing")
    if value is None or len(value) != 2 or min(float(side) for side in value) <= 0:
        return None
    return float(value[0]), float(value[1])


def plane_of(orientation: Any) -> str | None:
    """Name the plane of an ImageOrientationPatient within about 25 degrees, else None."""
    if orientation is None or len(orientation) != 6:
        return None
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    normal = np.abs(np.cross(row, column))
    axis = int(normal.argmax())
    return _PLANES[axis] if normal[axis] > 0.9 else None
