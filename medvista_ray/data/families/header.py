"""Header: a field of a DICOM header that the pixels do not show, or a size that follows from two of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from medvista_ray.data.manifest import ManifestEntry, Split, load_manifest
from medvista_ray.data.scene import encode_values
from medvista_ray.data.source_images import load_source_images
from medvista_ray.errors import DataError
from medvista_ray.images.dicom import read_dicom_facts
from medvista_ray.types.messages import Choice, HeaderValue, Reference, Task
from medvista_ray.types.protocols import TaskRecord

FAMILY = "header"
TOLERANCE = 0.01  # relative, of a number: rounding
WIDTH, HEIGHT = "field_of_view_width_mm", "field_of_view_height_mm"  # computed: pixels times spacing
# field -> (question, unit)
NUMBERS: Mapping[str, tuple[str, str]] = {
    "slice_thickness_mm": ("How thick is the slice, in mm, as the header says?", "mm"),
    "spacing_between_slices_mm": ("How far apart are the slices, in mm, as the header says?", "mm"),
    "tube_voltage_kv": ("Which tube voltage was used, in kV?", "kV"),
    "tube_current_ma": ("Which tube current was used, in mA?", "mA"),
    "exposure_mas": ("How large was the exposure, in mAs?", "mAs"),
    "exposure_time_ms": ("How long was the exposure, in ms?", "ms"),
    "gantry_tilt_deg": ("By how many degrees was the gantry tilted?", "deg"),
    "field_strength_t": ("Which field strength had the magnet, in tesla?", "T"),
    "repetition_time_ms": ("Which repetition time (TR) was used, in ms?", "ms"),
    "echo_time_ms": ("Which echo time (TE) was used, in ms?", "ms"),
    "flip_angle_deg": ("Which flip angle was used, in degrees?", "deg"),
    "bits_stored": ("How many bits of each pixel are stored, as the header says?", "bits"),
    "number_of_frames": ("How many frames has the file, as the header says?", "frames"),
    WIDTH: ("How wide is the field of view, in mm? It is the number of columns times the pixel spacing.", "mm"),
    HEIGHT: ("How high is the field of view, in mm? It is the number of rows times the pixel spacing.", "mm"),
}
# field -> (question, answers)
CODES: Mapping[str, tuple[str, Sequence[tuple[str, str]]]] = {
    "body_part_examined": (
        "Which body part was examined, as the header says?",
        [(part, part.lower()) for part in ("ABDOMEN", "CHEST", "EXTREMITY", "HEAD", "PANCREAS")],
    ),
    "view_position": ("Which view is it?", [("PA", "from behind (PA)"), ("AP", "from the front (AP)")]),
    "scanning_sequence": (
        "Which kind of sequence was used?",
        [("SE", "spin echo"), ("GR", "gradient echo"), ("IR", "inversion recovery"), ("EP", "echo planar")],
    ),
    "mr_acquisition_type": ("Was the acquisition two- or three-dimensional?", [("2D", "2D"), ("3D", "3D")]),
    "manufacturer": (
        "Who made the scanner?",
        [(name, name) for name in ("GE", "Siemens", "Philips", "Toshiba", "Fujifilm")],
    ),
    "laterality": ("Which side was examined, as the header says?", [("R", "right"), ("L", "left")]),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderItem:
    """One field of one file."""

    entry: ManifestEntry
    field: str
    value: HeaderValue
    header: Mapping[str, HeaderValue]


@cache
def list_header_items(split: Split) -> tuple[HeaderItem, ...]:
    """List the fields that can be asked, files taking turns."""
    columns = []
    for entry in load_manifest():
        if FAMILY in entry.families and entry.split == split:
            header = read_dicom_facts(entry.locate()).header
            columns.append(
                [
                    HeaderItem(entry=entry, field=field, value=value, header=header)
                    for field, value in _askable(header).items()
                ]
            )
    longest = max(map(len, columns))
    return tuple(column[place] for place in range(longest) for column in columns if place < len(column))


def _askable(header: Mapping[str, HeaderValue]) -> dict[str, HeaderValue]:
    """Return the fields of a header that have a question, and the sizes that follow from it."""
    found: dict[str, HeaderValue] = {}
    for field in (*CODES, *NUMBERS):
        value = header.get(field)
        if value and (field in NUMBERS or value in dict(CODES[field][1])):  # a zero mostly means "not used"
            found[field] = value
    for field, count, spacing in (
        (WIDTH, "columns", "pixel_spacing_column_mm"),
        (HEIGHT, "rows", "pixel_spacing_row_mm"),
    ):
        if count in header and spacing in header:
            found[field] = round(float(header[count]) * float(header[spacing]), 1)
    return found


def make_header_record(item: HeaderItem, task_id: str) -> TaskRecord:
    """Turn a field into a task and its reference; the header is what the tools may show, by digest."""
    (image,) = load_source_images(item.entry)
    if image.values is None:
        raise DataError(f"data.source: {item.entry.name} has no values of more than 8 bits")
    ref, blobs = encode_values(image.values, spacing_mm=image.spacing_mm, modality=image.modality)
    is_number = item.field in NUMBERS
    question = NUMBERS[item.field][0] if is_number else CODES[item.field][0]
    choices = () if is_number else tuple(Choice(choice_id=code, text=text) for code, text in CODES[item.field][1])
    return TaskRecord(
        task=Task(
            task_id=task_id,
            family=FAMILY,
            question=question,
            images=(ref,),
            choices=choices,
            answer_kind="number" if is_number else "choice",
            unit=NUMBERS[item.field][1] if is_number else "",
            headers={ref.digest: dict(item.header)},
            metadata={"source": item.entry.name, "synthetic_insert": False},
        ),
        reference=Reference(
            task_id=task_id,
            answer=f"{float(item.value):g}" if is_number else str(item.value),
            tolerance=TOLERANCE if is_number else None,
        ),
        blobs=blobs,
    )
