"""Read DICOM at the border: stored values in real units plus an allow-list of non-identifying facts.

Only the elements of an allow-list are parsed at all, so identifiers, private tags and overlays can reach neither a
record nor the text of an error or a warning. Values come through pydicom's own LUT functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medvista_ray.errors import ImageError
from medvista_ray.images.codec import DAMAGE, MAX_PIXELS

# The only elements that are parsed: how pixels are coded, and what stands in `DicomImage`.
_READ = (
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData", "FloatPixelData"),
    *("DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *("RescaleIntercept", "RescaleSlope", "ModalityLUTSequence"),
    *("RedPaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData"),
    *("GreenPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableData"),
    *("BluePaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableData"),
    *("SegmentedRedPaletteColorLookupTableData", "SegmentedGreenPaletteColorLookupTableData"),
    "SegmentedBluePaletteColorLookupTableData",
    *("Modality", "PixelSpacing", "ImageOrientationPatient"),
)
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
    from pydicom.errors import BytesLengthException, InvalidDicomError
    from pydicom.pixels import pixel_array

    try:
        dataset = pydicom.dcmread(path, specific_tags=list(_READ))
        size = (int(dataset.get("Rows", 0)), int(dataset.get("Columns", 0)))
        if not 1 <= size[0] * size[1] <= MAX_PIXELS:
            raise ImageError(f"{path.name}: {size[1]} x {size[0]} pixels are not between 1 and the cap of {MAX_PIXELS}")
        values = _real_values(pixel_array(dataset, index=frame), dataset)
        return DicomImage(
            values=values,
            modality=str(dataset.get("Modality", "OT")),
            spacing_mm=_spacing(dataset),
            plane=plane_of(dataset.get("ImageOrientationPatient")),
            bits_stored=int(dataset.get("BitsStored", 8)),
        )
    except (InvalidDicomError, OSError, RuntimeError) as error:  # not DICOM, not there, or no decoder for it
        why = str(error).split("\n")[0][:160]
    except (*DAMAGE, BytesLengthException, AttributeError, ArithmeticError) as error:
        why = type(error).__name__  # its text may quote bytes of any element, a name among them
    raise ImageError(f"{path.name} is not a DICOM image that can be decoded: {why}")


def _real_values(pixels: np.ndarray, dataset: Any) -> np.ndarray:
    """Apply the LUTs: float32 [H, W], or uint8 [H, W, 3] for colour; pydicom has turned YBR into RGB already."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut

    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    if photometric == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
        pixels = (pixels >> 8 if pixels.dtype == np.uint16 else pixels).astype(np.uint8)[..., :3]
    if pixels.ndim == 3:
        if pixels.dtype != np.uint8:
            raise ImageError(f"colour of more than 8 bits ({pixels.dtype}) is not supported")
        return pixels
    values = np.asarray(apply_modality_lut(pixels, dataset), dtype=np.float32)
    if not np.isfinite(values).all():
        raise ImageError("a stored value is not a finite number")
    if photometric == "MONOCHROME1":
        values = values.max() + values.min() - values
    return values


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
