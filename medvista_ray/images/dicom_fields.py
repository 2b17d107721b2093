"""The allow-list of DICOM fields that a task may show: numbers within bounds, codes of closed vocabularies, no text.

Each field is read from the raw bytes of its element, so that no value outside of its bounds is parsed, quoted or
warned about. A maker's name is replaced by the name in our own list. Knows elements; no pixels, no files.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from medvista_ray.types.messages import HeaderValue

_MAX_ELEMENT_BYTES = 256
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?")


def _terms(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Defined terms of Modality, PS3.3 C.7.3.1.1.1, those of images.
MODALITIES = _terms(
    "AR BI BMD CR CT DG DMS DX ECG EPS ES GM HC IO IVOCT IVUS KER LEN LS MG MR NM OAM OCT OP OPM OPT OPTBSV OPTENF "
    "OPV OSS OT PT PX REG RF RG RTDOSE RTIMAGE SC SEG SM SMR SRF TG US VA XA XC"
)
# Defined terms of Body Part Examined, PS3.16 annex L, those in common use.
BODY_PARTS = _terms(
    "ABDOMEN ABDOMENPELVIS ACJOINT ADRENAL ANKLE ANUS AORTA APPENDIX ARM AXILLA BACK BILEDUCT BLADDER BONE BRAIN "
    "BREAST BRONCHUS BUTTOCK CALCANEUS CALF CAROTID CEREBELLUM CERVIX CHEEK CHEST CHESTABDOMEN CHESTABDPELVIS "
    "CIRCLEOFWILLIS CLAVICLE COCCYX COLON CORNEA CORONARYARTERY CSPINE CTSPINE DUODENUM EAR ELBOW ESOPHAGUS EXTREMITY "
    "EYE EYELID FACE FEMUR FINGER FOOT FOREARM GALLBLADDER HAND HEAD HEADNECK HEART HIP HUMERUS IAC ILEUM ILIUM "
    "JAW JEJUNUM KIDNEY KNEE LARYNX LEG LIVER LSPINE LSSPINE LUMBAR LUNG MANDIBLE MAXILLA MEDIASTINUM MOUTH NECK "
    "NECKCHEST NECKCHESTABDOMEN NECKCHESTABDPELV NOSE OPTICCANAL ORBIT OVARY PANCREAS PAROTID PATELLA PELVIS "
    "PELVISLOWEXTREMT PENIS PHARYNX PROSTATE RECTUM RIB SACRUM SCALP SCAPULA SCLERA SCROTUM SELLA SHOULDER SIJOINT "
    "SKULL SPINE SPLEEN SSPINE STERNUM STOMACH SUBMANDIBULAR TESTIS THIGH THUMB THYMUS THYROID TIBIAFIBULA TLSPINE "
    "TMJOINT TOE TONGUE TRACHEA TSPINE ULNA URETER URETHRA UTERUS VAGINA VULVA WHOLEBODY WRIST ZYGOMA"
)
# PS3.3 C.8.1.1.1.1 (CR) and the views of mammography.
VIEWS = _terms("AP PA LL RL RLD LLD RLO LLO ML MLO LM LMO CC FB SIO ISO XCC XCCL XCCM")
# PS3.3 C.7.3.1.1.2
PATIENT_POSITIONS = _terms("HFP HFS HFDR HFDL FFDR FFDL FFP FFS LFP LFS RFP RFS AFDR AFDL PFDR PFDL")
PHOTOMETRIC_INTERPRETATIONS = frozenset(
    ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
)
# How the name of a maker begins -> how we write it. Makers that are not here are left out.
MAKERS: Mapping[str, str] = MappingProxyType(
    {
        "acuson": "Acuson",
        "agfa": "Agfa",
        "aloka": "Aloka",
        "atl": "ATL",
        "canon": "Canon",
        "carestream": "Carestream",
        "esaote": "Esaote",
        "fuji": "Fujifilm",
        "ge": "GE",
        "hitachi": "Hitachi",
        "hologic": "Hologic",
        "kodak": "Kodak",
        "konica": "Konica Minolta",
        "marconi": "Marconi",
        "mindray": "Mindray",
        "philips": "Philips",
        "picker": "Picker",
        "samsung": "Samsung",
        "shimadzu": "Shimadzu",
        "siemens": "Siemens",
        "toshiba": "Toshiba",
        "united imaging": "United Imaging",
    }
)
# Of these, frames usually carry text in their pixels: ultrasound, scopes and cameras, captured screens, scanned paper.
USUALLY_BURNED_IN = frozenset(("US", "IVUS", "ES", "XC", "SC", "OT"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    keyword: str  # of the DICOM element
    read: Callable[[str], HeaderValue | None]  # its first value, as text -> what is shown; None = left out


def _code(allowed: Collection[str]) -> Callable[[str], str | None]:
    def read(text: str) -> str | None:
        return text.upper() if text.upper() in allowed else None

    return read


def _number(low: float, high: float) -> Callable[[str], float | None]:
    """Read a number from `low` to `high`, to six digits: more would mark a single examination."""

    def read(text: str) -> float | None:
        if not _NUMBER.fullmatch(text):
            return None
        value = float(text)
        return float(f"{value:.6g}") if math.isfinite(value) and low <= value <= high else None

    return read


def _count(low: int, high: int) -> Callable[[str], int | None]:
    def read(text: str) -> int | None:
        return int(text) if re.fullmatch(r"\+?\d{1,6}", text) and low <= int(text) <= high else None

    return read


def _maker(text: str) -> str | None:
    words = " ".join(re.findall(r"[a-z]+", text.lower()))
    for start, name in MAKERS.items():
        is_whole_word = words == start or words.startswith(f"{start} ")
        if is_whole_word or (len(start) > 3 and words.startswith(start)):
            return name
    return None


def _yes_or_no(yes: str, no: str) -> Callable[[str], str | None]:
    def read(text: str) -> str | None:
        return {yes: "yes", no: "no"}.get(text.upper())

    return read


_FIELDS: Mapping[str, _Field] = MappingProxyType(
    {
        "modality": _Field(keyword="Modality", read=_code(MODALITIES)),
        "body_part_examined": _Field(keyword="BodyPartExamined", read=_code(BODY_PARTS)),
        "view_position": _Field(keyword="ViewPosition", read=_code(VIEWS)),
        "patient_position": _Field(keyword="PatientPosition", read=_code(PATIENT_POSITIONS)),
        "laterality": _Field(keyword="Laterality", read=_code(("R", "L"))),
        "image_laterality": _Field(keyword="ImageLaterality", read=_code(("R", "L", "U", "B"))),
        "manufacturer": _Field(keyword="Manufacturer", read=_maker),
        "rows": _Field(keyword="Rows", read=_count(1, 65535)),
        "columns": _Field(keyword="Columns", read=_count(1, 65535)),
        "number_of_frames": _Field(keyword="NumberOfFrames", read=_count(1, 100_000)),
        "bits_stored": _Field(keyword="BitsStored", read=_count(1, 64)),
        "photometric_interpretation": _Field(
            keyword="PhotometricInterpretation", read=_code(PHOTOMETRIC_INTERPRETATIONS)
        ),
        "lossy_compression": _Field(keyword="LossyImageCompression", read=_yes_or_no("01", "00")),
        "slice_thickness_mm": _Field(keyword="SliceThickness", read=_number(0.001, 200)),
        "spacing_between_slices_mm": _Field(keyword="SpacingBetweenSlices", read=_number(0.001, 200)),
        "tube_voltage_kv": _Field(keyword="KVP", read=_number(1, 500)),
        "tube_current_ma": _Field(keyword="XRayTubeCurrent", read=_number(0, 5000)),
        "exposure_mas": _Field(keyword="Exposure", read=_number(0, 10_000)),
        "exposure_time_ms": _Field(keyword="ExposureTime", read=_number(0, 100_000)),
        "gantry_tilt_deg": _Field(keyword="GantryDetectorTilt", read=_number(-90, 90)),
        "field_strength_t": _Field(keyword="MagneticFieldStrength", read=_number(0.001, 25)),
        "repetition_time_ms": _Field(keyword="RepetitionTime", read=_number(0, 100_000)),
        "echo_time_ms": _Field(keyword="EchoTime", read=_number(0, 10_000)),
        "inversion_time_ms": _Field(keyword="InversionTime", read=_number(0, 100_000)),
        "flip_angle_deg": _Field(keyword="FlipAngle", read=_number(0, 360)),
        "echo_train_length": _Field(keyword="EchoTrainLength", read=_count(0, 10_000)),
        "scanning_sequence": _Field(keyword="ScanningSequence", read=_code(("SE", "IR", "GR", "EP", "RM"))),
        "mr_acquisition_type": _Field(keyword="MRAcquisitionType", read=_code(("1D", "2D", "3D"))),
    }
)
HEADER_NAMES = (*_FIELDS, "pixel_spacing_row_mm", "pixel_spacing_column_mm", "plane", "burned_in_annotation")
_BURNED_IN = "BurnedInAnnotation"
HEADER_KEYWORDS = (*(field.keyword for field in _FIELDS.values()), _BURNED_IN)


def read_header(dataset: Any) -> dict[str, HeaderValue]:
    """Return what a pydicom dataset says in the fields of the allow-list; what is out of bounds is left out.

    `burned_in_annotation` is a flag, not a promise: "yes" where the file says so, or where it says nothing and frames
    of its modality usually carry text; "no" where the file says so; else "unknown". No text is looked for in pixels.
    """
    header: dict[str, HeaderValue] = {}
    for name, field in _FIELDS.items():
        value = field.read(first_text(dataset, field.keyword))
        if value is not None:
            header[name] = value
    said = _yes_or_no("YES", "NO")(first_text(dataset, _BURNED_IN))
    is_usual = header.get("modality") in USUALLY_BURNED_IN
    header["burned_in_annotation"] = said or ("yes" if is_usual else "unknown")
    return header


def first_text(dataset: Any, keyword: str) -> str:
    """Return the first value of an element as text, "" if there is none; see `texts`."""
    return next(iter(texts(dataset, keyword)), "")


def texts(dataset: Any, keyword: str) -> list[str]:
    """Return the values of a short element as texts, from its raw bytes, without handing them to pydicom's parsers."""
    element = dataset.get_item(keyword)
    value = getattr(element, "value", None)
    if value is None:
        return []
    if not isinstance(value, bytes):  # parsed already, on the way to the pixels
        return [str(part).strip() for part in ([value] if isinstance(value, (str, int, float)) else value)]
    if len(value) > _MAX_ELEMENT_BYTES:
        return []
    layout = _binary_layout(keyword)
    if layout is None:
        return [part.strip(" \0") for part in value.decode("latin-1").split("\\")]
    count = len(value) // struct.calcsize(layout)
    order = "<" if element.is_little_endian else ">"
    size = count * struct.calcsize(layout)
    return [str(number) for number in struct.unpack(f"{order}{count}{layout}", value[:size])]


def numbers(dataset: Any, keyword: str) -> list[float]:
    """Return the values of an element that holds numbers; an empty list when one of them is none."""
    values = [value for value in texts(dataset, keyword) if value]
    return [float(value) for value in values] if all(_NUMBER.fullmatch(value) for value in values) else []


def _binary_layout(keyword: str) -> str | None:
    """Return the `struct` letter of an element of numbers; the standard says it, whatever the file says."""
    from pydicom.datadict import dictionary_VR

    return {"US": "H", "FD": "d"}.get(dictionary_VR(keyword))
