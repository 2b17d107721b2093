"""Read DICOM at the border: stored values in real units plus an allow-list of non-identifying facts.

Only the elements of an allow-list are parsed at all, so identifiers, private tags and overlays can reach neither a
record nor the text of an error or a warning. Values come through pydicom's own LUT functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medvista_ray.errors import ImageError
from medvista_ray.images.codec import MAX_PIXELS
from medvista_ray.images.codestreams import codestream_size
from medvista_ray.images.dicom_fields import (
    HEADER_KEYWORDS,
    PHOTOMETRIC_INTERPRETATIONS,
    first_text,
    numbers,
    read_header,
    texts,
)
from medvista_ray.images.dicom_groups import GROUP_KEYWORDS, frame_numbers, frame_rescale, has_frames
from medvista_ray.images.dicom_reader import read_elements
from medvista_ray.types.messages import HeaderValue

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
    *GROUP_KEYWORDS,
    *("PixelSpacing", "SequenceOfUltrasoundRegions", "ImageOrientationPatient"),
    *HEADER_KEYWORDS,
)
_NUMBERS = ("NumberOfFrames", "RescaleIntercept", "RescaleSlope")  # written as text, parsed on the way to the pixels
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_MODALITY_LUTS = ("RescaleSlope", "ModalityLUTSequence")
_PLANES = ("sagittal", "coronal", "axial")  # the plane whose normal is x, y, z of the patient
_CENTIMETRES = 3  # of PhysicalUnitsXDirection, PS3.3 C.8.5.5.1.15
_MAX_REGIONS = 64
_SPACING_BOUNDS_MM = (1e-5, 100.0)
MAX_FRAME_BYTES = 4 * MAX_PIXELS


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DicomImage:
    """One frame of a DICOM file."""

    values: np.ndarray  # float32 [H, W] in the unit of the modality LUT (HU for CT), or uint8 [H, W, 3] for colour
    modality: str  # DICOM code; OT where the file names none
    spacing_mm: tuple[float, float] | None  # (row, column)
    plane: str | None  # axial, coronal, sagittal; None when oblique or unknown
    bits_stored: int
    header: Mapping[str, HeaderValue] = field(default_factory=dict)  # see `dicom_fields`


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomFacts:
    """What a DICOM file says besides its pixels."""

    modality: str
    spacing_mm: tuple[float, float] | None  # (row, column)
    plane: str | None
    header: Mapping[str, HeaderValue]


def read_dicom(path: Path, *, frame: int = 0) -> DicomImage:
    """Read one frame; MONOCHROME1 is turned the right way round; `ImageError` says what is wrong."""
    from pydicom.pixels import pixel_array

    def read(dataset: Any) -> DicomImage:
        if not any(keyword in dataset for keyword in _PIXELS):
            raise ImageError(f"{path.name} holds no image: it has no pixel data, as a plan, a waveform or a report")
        _check_elements(path, dataset)
        _check_size(path, dataset, frame=frame)
        facts = _read_facts(dataset, frame=frame)
        return DicomImage(
            values=_real_values(pixel_array(dataset, index=frame), dataset, frame=frame),
            modality=facts.modality,
            spacing_mm=facts.spacing_mm,
            plane=facts.plane,
            bits_stored=int(dataset.get("BitsStored", 8)),
            header=facts.header,
        )

    return read_elements(path, _READ, read, stop_before_pixels=False)


def read_dicom_facts(path: Path, *, frame: int = 0) -> DicomFacts:
    """Read what a file says besides its pixels, which may be coded in a way that nothing here decodes."""
    return read_elements(path, _READ, lambda dataset: _read_facts(dataset, frame=frame))


def read_patient_key(path: Path) -> str:
    """Return PatientID, "" without one: to group files by. It names a person: the caller keeps it out of every text."""
    return read_elements(path, ["PatientID"], lambda dataset: first_text(dataset, "PatientID"))


def _check_elements(path: Path, dataset: Any) -> None:
    """Refuse an element that is not of its kind, since pydicom would quote its value in a warning."""
    from pydicom.datadict import dictionary_VR, keyword_for_tag
    from pydicom.valuerep import STR_VR

    for tag in list(dataset.keys()):
        keyword, vr = keyword_for_tag(tag), dataset.get_item(tag).VR
        if vr in STR_VR and vr not in dictionary_VR(tag):
            raise ImageError(f"{path.name}: {keyword} is not of its kind")
        if keyword in _NUMBERS and len(numbers(dataset, keyword)) != len([t for t in texts(dataset, keyword) if t]):
            raise ImageError(f"{path.name}: {keyword} is no number")
    photometric = first_text(dataset, "PhotometricInterpretation")
    if photometric and photometric not in PHOTOMETRIC_INTERPRETATIONS:
        raise ImageError(f"{path.name}: its PhotometricInterpretation is not one that is read here")


def _check_size(path: Path, dataset: Any, *, frame: int) -> None:
    """Refuse an image that is too large before a pixel is decoded, whatever the header or the codestream says."""
    height, width = (int(first_text(dataset, keyword) or 0) for keyword in ("Rows", "Columns"))
    if not 1 <= width * height <= MAX_PIXELS:
        raise ImageError(f"{path.name}: {width} x {height} pixels are not between 1 and the cap of {MAX_PIXELS}")
    samples, bits = (int(first_text(dataset, keyword) or 1) for keyword in ("SamplesPerPixel", "BitsAllocated"))
    if width * height * samples * bits // 8 > MAX_FRAME_BYTES:
        raise ImageError(f"{path.name}: one frame has more than the cap of {MAX_FRAME_BYTES} bytes")
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    from pydicom.encaps import get_frame

    num_frames = int(first_text(dataset, "NumberOfFrames") or 1)
    coded = codestream_size(get_frame(dataset.PixelData, frame, number_of_frames=num_frames))
    if coded is not None and coded != (width, height):
        raise ImageError(f"{path.name}: {coded[0]} x {coded[1]} pixels are coded, the header says {width} x {height}")


def _read_facts(dataset: Any, *, frame: int) -> DicomFacts:
    header = read_header(dataset)
    spacing_mm = _spacing(dataset, frame=frame)
    plane = plane_of(frame_numbers(dataset, "ImageOrientationPatient", frame=frame))
    if spacing_mm is not None:
        header["pixel_spacing_row_mm"], header["pixel_spacing_column_mm"] = (float(f"{mm:.6g}") for mm in spacing_mm)
    if plane is not None:
        header["plane"] = plane
    return DicomFacts(modality=str(header.get("modality", "OT")), spacing_mm=spacing_mm, plane=plane, header=header)


def _real_values(pixels: np.ndarray, dataset: Any, *, frame: int) -> np.ndarray:
    """Apply the LUTs: float32 [H, W], or uint8 [H, W, 3] for colour; pydicom has turned YBR into RGB already."""
    from pydicom.pixels import apply_color_lut

    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    if photometric == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
        pixels = (pixels >> 8 if pixels.dtype == np.uint16 else pixels).astype(np.uint8)[..., :3]
    if pixels.ndim == 3:
        if pixels.dtype != np.uint8:
            raise ImageError(f"colour of more than 8 bits ({pixels.dtype}) is not supported")
        return pixels
    values = _apply_rescale(pixels, dataset, frame=frame)
    if not np.isfinite(values).all():
        raise ImageError("a stored value is not a finite number")
    if photometric == "MONOCHROME1":
        values = values.max() + values.min() - values
    return values


def _apply_rescale(pixels: np.ndarray, dataset: Any, *, frame: int) -> np.ndarray:
    """Return float32 [H, W] in the unit of the rescale, or of the LUT, that holds for a frame."""
    from pydicom.pixels import apply_modality_lut

    rescale = frame_rescale(dataset, frame=frame)
    if rescale is not None:
        return (pixels * np.float64(rescale[0]) + rescale[1]).astype(np.float32)
    is_ct = first_text(dataset, "Modality") == "CT"
    if is_ct and has_frames(dataset) and not any(keyword in dataset for keyword in _MODALITY_LUTS):
        raise ImageError(
            "a CT of several frames without a rescale: its values in HU are not known; "
            "write each frame with RescaleSlope and RescaleIntercept"
        )
    return np.asarray(apply_modality_lut(pixels, dataset), dtype=np.float32)


def _spacing(dataset: Any, *, frame: int) -> tuple[float, float] | None:
    """Return (row, column) millimetres: PixelSpacing, else what the ultrasound regions that hold an image agree on."""
    spacing = frame_numbers(dataset, "PixelSpacing", frame=frame)
    if len(spacing) == 2:
        return _within_bounds(spacing[0], spacing[1])
    found = {
        _within_bounds(10 * rows[0], 10 * columns[0])
        for region in list(dataset.get("SequenceOfUltrasoundRegions") or ())[:_MAX_REGIONS]
        if _is_spatial(region)
        and (rows := numbers(region, "PhysicalDeltaY"))
        and (columns := numbers(region, "PhysicalDeltaX"))
    }
    return found.pop() if len(found) == 1 else None


def _is_spatial(region: Any) -> bool:
    """Return whether both axes of an ultrasound region are lengths; a trace or a spectrum has time or speed on one."""
    units = (numbers(region, keyword) for keyword in ("PhysicalUnitsXDirection", "PhysicalUnitsYDirection"))
    return all(unit == [_CENTIMETRES] for unit in units)


def _within_bounds(row_mm: float, column_mm: float) -> tuple[float, float] | None:
    low, high = _SPACING_BOUNDS_MM
    return (row_mm, column_mm) if low <= row_mm <= high and low <= column_mm <= high else None


def plane_of(orientation: Any) -> str | None:
    """Name the plane of an ImageOrientationPatient within about 25 degrees, else None."""
    if orientation is None or len(orientation) != 6:
        return None
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    normal = np.abs(np.cross(row, column))
    axis = int(normal.argmax())
    return _PLANES[axis] if normal[axis] > 0.9 else None
