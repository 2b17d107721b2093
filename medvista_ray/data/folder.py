"""A user's own data: a folder with `tasks.jsonl` and image files under it.

One JSON object a line: `task_id`, `split` (train or held_out), `question`, `images` (paths below the folder), `answer`
(one of the choices, or text, or a number), and where they apply `family`, `choices` (list of texts), `tolerance`
(relative, for numbers), `spacing_mm` [row, column], `source` (what an item was drawn from). Names of files stay here.
"""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path

import msgspec
import numpy as np

from medvista_ray.data.manifest import Split
from medvista_ray.data.source_images import display_scale
from medvista_ray.errors import DataError, ImageError
from medvista_ray.images.codec import decode, encode_npy, encode_png, make_ref
from medvista_ray.images.dicom import read_dicom
from medvista_ray.types.messages import NPY_MIME, PNG_MIME, Choice, ImageRef, Reference, Task
from medvista_ray.types.protocols import TaskRecord
from medvista_ray.types.quantity import parse_number

_MIMES = {".png": PNG_MIME, ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".npy": NPY_MIME}
_Text = str | int | float


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of tasks.jsonl; other keys are the user's own and are not read, unless they look misspelt."""

    task_id: str | int
    split: Split
    question: str
    images: list[str]
    answer: _Text
    family: str = "vqa"
    choices: list[_Text] = []
    tolerance: float | None = None
    spacing_mm: tuple[float, float] | None = None
    source: str | None = None

    @property
    def source_name(self) -> str:
        """Name what the item was drawn from; a file name may name a patient, so its digest stands in."""
        if self.source is not None or not self.images:
            return self.source or ""
        return hashlib.sha256(self.images[0].encode()).hexdigest()[:12]


class FolderTaskSource:
    """The tasks of one split of a folder, in file order.

    Args:
        folder: holds tasks.jsonl.
        split: which half.
        families: what to keep; empty = all.
        max_tasks: how many of these, from the first on; 0 = all.
    """

    def __init__(self, folder: Path, split: Split, *, families: tuple[str, ...] = (), max_tasks: int = 0) -> None:
        path = folder / "tasks.jsonl"
        if not path.is_file():
            raise DataError(f"data.source: {folder} has no tasks.jsonl; see docs/data.md for the format")
        self._folder = folder.resolve()
        self._rows: list[tuple[int, _Row]] = []
        lines_of_ids: dict[str, int] = {}
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
            if not line.strip():
                continue
            row = self._parse(line, number)
            first = lines_of_ids.setdefault(str(row.task_id), number)
            if first != number:
                raise DataError(f"{self._where(number)}: task_id {row.task_id!r} stands on line {first} already")
            if row.split == split and (not families or row.family in families):
                self._rows.append((number, row))
        if not self._rows:
            wanted = f" and a family of {', '.join(families)} (data.families)" if families else ""
            raise DataError(f"data.source: {path} has no task with split {split!r}{wanted}")
        if max_tasks:
            del self._rows[max_tasks:]
        for number, row in self._rows:
            for name in row.images:
                self._locate(name, number)

    def __len__(self) -> int:
        """Count the tasks."""
        return len(self._rows)

    def __getitem__(self, index: int) -> TaskRecord:
        """Read the images of one task and make its record."""
        number, row = self._rows[index]
        images: list[ImageRef] = []
        blobs: dict[str, bytes] = {}
        for name in row.images:
            ref, data = self._read_image(name, number, row)
            images.append(ref)
            blobs[ref.digest] = data
        task = Task(
            task_id=str(row.task_id),
            family=row.family,
            question=row.question,
            images=tuple(images),
            choices=tuple(Choice(choice_id=str(text), text=str(text)) for text in row.choices),
            metadata={"source": row.source_name},
        )
        reference = Reference(task_id=task.task_id, answer=str(row.answer), tolerance=row.tolerance)
        return TaskRecord(task=task, reference=reference, blobs=blobs)

    def _where(self, number: int) -> str:
        return f"data.source: {self._folder.name}/tasks.jsonl line {number}"

    def _parse(self, line: bytes, number: int) -> _Row:
        where = self._where(number)
        try:
            row = msgspec.json.decode(line, type=_Row)
            unknown = msgspec.json.decode(line).keys() - set(_Row.__struct_fields__)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            hint = "; split is train or held_out" if "$.split" in str(error) else ""
            raise DataError(f"{where}: {error}{hint}") from error
        for key in sorted(unknown):
            if near := difflib.get_close_matches(key, _Row.__struct_fields__, n=1, cutoff=0.75):
                raise DataError(f"{where}: unknown key {key!r}: did you mean {near[0]}?")
        choices = [str(text) for text in row.choices]
        if choices and str(row.answer) not in choices:
            raise DataError(f"{where}: the answer {row.answer!r} is none of the choices {choices}")
        if len({text.strip().casefold() for text in choices}) != len(choices):
            raise DataError(f"{where}: two of the choices {choices} are the same to the grader")
        if row.spacing_mm is not None and min(row.spacing_mm) <= 0:
            raise DataError(f"{where}: spacing_mm must be > 0 millimetres, got {list(row.spacing_mm)}")
        if row.tolerance is not None:
            self._check_number(row, where)
        return row

    def _check_number(self, row: _Row, where: str) -> None:
        """Refuse an answer that no reply could match."""
        if row.tolerance is not None and row.tolerance < 0:
            raise DataError(f"{where}: tolerance must be >= 0, got {row.tolerance}")
        if row.choices:
            raise DataError(f"{where}: a question has choices, or a number with a tolerance, not both")
        if parse_number(str(row.answer)) is None:
            raise DataError(f"{where}: the answer {row.answer!r} is no number, but the line has a tolerance")

    def _locate(self, name: str, number: int) -> Path:
        where = f"{self._where(number)}: image {name!r}"
        try:
            path = (self._folder / name).resolve()
            is_there = path.is_relative_to(self._folder) and path.is_file()
        except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
            raise DataError(f"{where}: {error}") from error
        if not is_there:
            raise DataError(f"{where} is no file below the folder")
        return path

    def _read_image(self, name: str, number: int, row: _Row) -> tuple[ImageRef, bytes]:
        path = self._locate(name, number)
        try:
            data, mime, pixels, header_spacing, modality = _read_file(path)
        except (ImageError, OSError, ValueError) as error:
            raise DataError(f"{self._where(number)}: image {name!r}: {error}") from error
        height, width = pixels.shape[:2]
        spacing_mm = row.spacing_mm or header_spacing
        return make_ref(data, mime=mime, width=width, height=height, spacing_mm=spacing_mm, modality=modality), data


def _read_file(path: Path) -> tuple[bytes, str, np.ndarray, tuple[float, float] | None, str | None]:
    mime = _MIMES.get(path.suffix.lower())
    if mime is not None:
        data = path.read_bytes()
        return data, mime, decode(data, mime), None, None
    dicom = read_dicom(path)
    if dicom.values.ndim == 3:
        return encode_png(dicom.values), PNG_MIME, dicom.values, dicom.spacing_mm, dicom.modality
    # Only CT has units that the window presets are made for; everything else is put on their scale.
    values = dicom.values if dicom.modality == "CT" else display_scale(dicom.values)
    return encode_npy(values), NPY_MIME, values, dicom.spacing_mm, dicom.modality
