"""The interchange format: one line of `tasks.jsonl`, and what must hold in it. Knows no files but the names in a line.

`docs/tasks.schema.json` is made from `TaskRow`.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from medvista_ray.data.manifest import Split
from medvista_ray.errors import DataError
from medvista_ray.images.dicom_fields import HEADER_NAMES
from medvista_ray.types.messages import AnswerKind, Choice, HeaderValue, Reference, Task
from medvista_ray.types.quantity import convert, parse_number

_SEPARATOR = re.compile("[,;\n\uff0c\uff1b\u3001]")  # of items, and their full-width forms
Text = str | int | float
Box = tuple[float, float, float, float]


def _about(text: str, **bounds: Any) -> Meta:
    return Meta(description=text, extra_json_schema=bounds or None)


class TaskRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One task and its reference; other keys are the user's own and are not read, unless they look misspelt."""

    task_id: Annotated[str | int, _about("unique in the file")]
    split: Annotated[Split, _about("split by patient, not by image")]
    question: str
    images: Annotated[
        list[str], _about("paths below the folder: PNG, JPEG, npy (2-D stored values), DICOM; index 0, 1 …")
    ] = []
    volumes: Annotated[
        list[str], _about("paths below the folder: NIfTI, brought to RAS order; indexed after the images")
    ] = []
    answer: Annotated[Text | None, _about("a choice, a text or a number; not for boxes, mask and list")] = None
    family: Annotated[str, _about("groups questions in tables and in data.families")] = "vqa"
    answer_kind: Annotated[
        AnswerKind | None,
        _about("default: choice with choices, number with a tolerance, else by what is given in place of an answer"),
    ] = None
    choices: Annotated[list[Text], _about("texts of a closed question; the answer is one of them")] = []
    aliases: Annotated[list[Text], _about("other texts that are as right as the answer")] = []
    items: Annotated[list[Text], _about("the answer to a list question, in order")] = []
    unit: Annotated[str, _about("that a number is asked in")] = ""
    tolerance: Annotated[float | None, _about("of a number, relative to it", minimum=0)] = None
    absolute_tolerance: Annotated[
        float | None, _about("of a number, in its unit; the wider of the two holds", minimum=0)
    ] = None
    boxes: Annotated[list[Box], _about("[x0, y0, x1, y1] in pixels of image 0: what to find")] = []
    regions: Annotated[list[Box], _about("as boxes: where the evidence is")] = []
    mask: Annotated[
        str | None, _about("path of a PNG as large as image 0: what to outline; every pixel that is not 0")
    ] = None
    mask_label: Annotated[int | None, _about("the one value of the mask that counts", minimum=1)] = None
    spacing_mm: Annotated[
        tuple[float, float] | None, _about("[row, column] between pixel centres of the images, if the file is silent")
    ] = None
    modality: Annotated[str | None, _about("DICOM code of what is in the files, if they are silent; is shown")] = None
    headers: Annotated[
        list[dict[str, HeaderValue]], _about("one object an image: DICOM fields that identify nobody; is shown")
    ] = []
    source: Annotated[str | None, _about("what the item was drawn from, for counting; is shown")] = None
    patient: Annotated[str | None, _about("pseudonym: no patient may be in both splits")] = None

    @property
    def source_name(self) -> str:
        """Name what the item was drawn from; a patient, or a file name that may name one, is replaced by a digest."""
        if self.source is not None:
            return self.source
        named = self.patient or next(iter((*self.images, *self.volumes)), "")
        return hashlib.sha256(named.encode()).hexdigest()[:12] if named else ""

    @property
    def kind(self) -> AnswerKind:
        """Return what the answer has to be."""
        if self.answer_kind is not None:
            return self.answer_kind
        if self.choices:
            return "choice"
        if self.tolerance is not None or self.absolute_tolerance is not None:
            return "number"
        if self.answer is not None:
            return "text"
        return "mask" if self.mask is not None else "boxes" if self.boxes else "list" if self.items else "text"

    @property
    def files(self) -> Mapping[str, Sequence[str]]:
        """Return every file that the line names, by what it is."""
        return {"image": self.images, "volume": self.volumes, "mask": () if self.mask is None else (self.mask,)}


_KEYS = frozenset(TaskRow.__struct_fields__)
_DECODER = msgspec.json.Decoder(TaskRow)


def parse_row(line: bytes, *, where: str) -> TaskRow:
    """Decode and check one line; `DataError` begins with `where` and says what is wrong."""
    try:
        row = _DECODER.decode(line)
        unknown = msgspec.json.decode(line).keys() - _KEYS
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        hint = "; split is train or held_out" if "$.split" in str(error) else ""
        raise DataError(f"{where}: {error}{hint}") from error
    for key in sorted(unknown):
        near = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.75)
        if near and abs(len(key) - len(near[0])) <= 1:  # a slip; `question_id` is a key of the user's own
            raise DataError(f"{where}: unknown key {key!r}: did you mean {near[0]}?")
    check_row(row, where=where)
    return row


def check_row(row: TaskRow, *, where: str) -> None:
    """Refuse a row that no reply could answer, or that cannot be what was meant."""
    if not row.images and not row.volumes:
        raise DataError(f"{where}: a task needs `images` or `volumes`")
    if row.spacing_mm is not None and not all(0 < side < math.inf for side in row.spacing_mm):
        raise DataError(f"{where}: spacing_mm must be > 0 millimetres, got {list(row.spacing_mm)}")
    _check_headers(row, where)
    for key in ("tolerance", "absolute_tolerance"):
        value = getattr(row, key)
        if value is not None and not 0 <= value < math.inf:
            raise DataError(f"{where}: {key} must be >= 0, got {value}")
    _check_places(row, where)
    _check_answer(row, where)


def _check_headers(row: TaskRow, where: str) -> None:
    if row.headers and len(row.headers) != len(row.images):
        raise DataError(f"{where}: headers has {len(row.headers)} objects for {len(row.images)} images")
    for name in sorted({name for header in row.headers for name in header} - set(HEADER_NAMES)):
        raise DataError(f"{where}: headers: {name!r} is not on the list of fields that may be shown")


def check_inside(row: TaskRow, *, width: int, height: int) -> None:
    """Refuse boxes and regions that leave image 0, with `ValueError`; half a pixel is rounding."""
    for key in ("boxes", "regions"):
        for box in getattr(row, key):
            if box[2] > width + 0.5 or box[3] > height + 0.5:
                raise ValueError(f"{key}: {list(box)} leaves the image of {width} x {height} pixels")


def _check_places(row: TaskRow, where: str) -> None:
    for key in ("boxes", "regions"):
        for box in getattr(row, key):
            if not (all(map(math.isfinite, box)) and 0 <= box[0] < box[2] and 0 <= box[1] < box[3]):
                raise DataError(f"{where}: {key} are [x0, y0, x1, y1] in pixels, x0 < x1 and y0 < y1, got {list(box)}")
    if (row.boxes or row.regions or row.mask) and not row.images:
        raise DataError(f"{where}: boxes, regions and mask are those of image 0, and `images` is empty")
    if row.mask_label is not None and row.mask is None:
        raise DataError(f"{where}: mask_label without `mask`")


def _check_answer(row: TaskRow, where: str) -> None:
    kind = row.kind
    if kind in ("choice", "text", "number") and (row.answer is None or not str(row.answer).strip()):
        raise DataError(f"{where}: a {kind} question needs `answer`")
    for needed, given in (("boxes", row.boxes), ("mask", row.mask), ("list", row.items)):
        if kind == needed and not given:
            raise DataError(f"{where}: answer_kind {kind} needs `{'items' if kind == 'list' else kind}`")
    if kind == "list":
        _check_items(row, where)
    if kind == "choice":
        _check_choices(row, where)
    elif kind == "number":
        _check_number(row, where)
    elif row.choices:
        raise DataError(f"{where}: choices belong to answer_kind choice, not {kind}")
    elif row.tolerance is not None or row.absolute_tolerance is not None:
        raise DataError(f"{where}: a tolerance belongs to answer_kind number, not {kind}")


def _check_items(row: TaskRow, where: str) -> None:
    """Refuse items that an answer with commas cannot name one by one, or of which nothing is left to compare."""
    for item in map(str, row.items):
        if _SEPARATOR.search(item):
            raise DataError(f"{where}: the item {item!r} holds a comma, semicolon or line end, which part items")
        if all(unicodedata.category(letter)[0] in "PZC" and letter != "%" for letter in item):
            raise DataError(f"{where}: of the item {item!r} nothing is left without punctuation")


def _check_choices(row: TaskRow, where: str) -> None:
    choices = [str(text) for text in row.choices]
    if not choices:
        raise DataError(f"{where}: answer_kind choice needs `choices`")
    if row.tolerance is not None or row.absolute_tolerance is not None:
        raise DataError(f"{where}: a question has choices, or a number with a tolerance, not both")
    if str(row.answer) not in choices:
        raise DataError(f"{where}: the answer {row.answer!r} is none of the choices {choices}")
    if len({text.strip().casefold() for text in choices}) != len(choices):
        raise DataError(f"{where}: two of the choices {choices} are the same to the grader")


def _check_number(row: TaskRow, where: str) -> None:
    if row.choices:
        raise DataError(f"{where}: a question has choices, or a number with a tolerance, not both")
    number = parse_number(str(row.answer))
    if number is None:
        reason = "its answer_kind is number" if row.answer_kind else "the line has a tolerance"
        raise DataError(f"{where}: the answer {row.answer!r} is no number, but {reason}")
    if not math.isfinite(number[0]):
        raise DataError(f"{where}: the answer {row.answer!r} is not a finite number")
    if row.unit and number[1] and convert(*number, to=row.unit) is None:
        raise DataError(f"{where}: the answer {row.answer!r} is not in the unit {row.unit!r}")


def make_task(row: TaskRow, **sources: Any) -> Task:
    """Make what the policy may see of a row; `sources` are the images, volumes and headers of its files."""
    unit = row.unit
    if not unit and row.kind == "number" and (number := parse_number(str(row.answer))) is not None:
        unit = number[1]
    return Task(
        task_id=str(row.task_id),
        family=row.family,
        question=row.question,
        choices=tuple(Choice(choice_id=str(text), text=str(text)) for text in row.choices),
        answer_kind=row.kind,
        unit=unit,
        metadata={"source": row.source_name},
        **sources,
    )


def make_reference(row: TaskRow, *, mask: np.ndarray | None) -> Reference:
    """Make what only rewards see of a row."""
    return Reference(
        task_id=str(row.task_id),
        answer="" if row.answer is None else str(row.answer),
        aliases=tuple(map(str, row.aliases)),
        items=tuple(map(str, row.items)),
        tolerance=row.tolerance,
        absolute_tolerance=row.absolute_tolerance,
        boxes=np.array(row.boxes, dtype=np.float32).reshape(-1, 4),
        regions=np.array(row.regions, dtype=np.float32).reshape(-1, 4),
        mask=mask,
    )


def make_schema() -> dict[str, Any]:
    """Return the JSON Schema of a line of `tasks.jsonl`."""
    schema = msgspec.json.schema(TaskRow)
    row = schema["$defs"]["TaskRow"]
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A line of tasks.jsonl"}
    return {**head, **{key: value for key, value in row.items() if key != "title"}}
