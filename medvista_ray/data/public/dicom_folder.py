"""A folder of DICOM files with `questions.csv`: one question a line about one file.

Columns: file, question, answer; and where they apply task_id, split (train, held_out), family, choices (a|b|c), unit,
tolerance. Pixels and allow-listed fields are taken over, no other part of a file. Which files belong to one patient is
read from PatientID, for the split alone; files without one stand each for a patient. Where `split` is filled in, it is
the split.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from medvista_ray.data.public.draft import Draft, Half, LoaderOptions, PublicSet, SplitRule, find_below, make_reader
from medvista_ray.data.rows import TaskRow
from medvista_ray.errors import DataError, ImageError
from medvista_ray.images.dicom import read_patient_key

_QUESTIONS = "questions.csv"
_REQUIRED = ("file", "question", "answer")
_OPTIONAL = ("task_id", "split", "family", "choices", "unit", "tolerance")
_HALVES: dict[str, Half | None] = {"": None, "train": "train", "held_out": "test"}


class DicomFolderLoader:
    """Reads questions about DICOM files."""

    def __init__(self, folder: Path, options: LoaderOptions) -> None:
        self._folder = folder
        self._questions = folder / _QUESTIONS
        if not self._questions.is_file():
            raise DICOM_FOLDER.refuse(f"there is no file {self._questions}")

    @property
    def annotations(self) -> Iterator[Path]:
        """Yield the file with questions, then each file that it names and that is there, once."""
        yield self._questions
        for name in dict.fromkeys(fields.get("file") for fields, _ in self._lines()):
            try:
                yield find_below(self._folder, name or "", where=_QUESTIONS)
            except DataError:  # `read` says which line names it
                continue

    @property
    def split_rule(self) -> SplitRule | None:
        """Return that the split is the user's own where a line has one."""
        return "published" if any(fields.get("split") for fields, _ in self._lines()) else None

    def count(self) -> None:
        """Return None: nobody has counted."""

    def read(self) -> Iterator[Draft]:
        """Yield the questions."""
        for fields, line in self._lines():
            yield self._make_draft(fields, line)

    def _lines(self) -> Iterator[tuple[dict[Any, Any], int]]:
        """Yield the fields of each line, and its number."""
        try:
            with self._questions.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file)
                _check_columns(reader.fieldnames or ())
                for fields in reader:
                    yield fields, reader.line_num
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{self._questions}: {error}") from error

    def _make_draft(self, fields: dict[Any, Any], line: int) -> Draft:
        where = f"{_QUESTIONS} line {line}"
        if None in fields or None in fields.values():
            raise DataError(f"{where}: not as many values as there are columns")
        split = fields.get("split", "")
        if split not in _HALVES:
            raise DataError(f"{where}: split is train or held_out, got {split!r}")
        path = find_below(self._folder, fields["file"], where=where)
        return Draft(
            where=where,
            row=_make_row(fields, task_id=fields.get("task_id") or f"dicom-{line:06d}", where=where),
            images=(make_reader(path, where=where),),
            half=_HALVES[split],
            patient=_read_patient(path, where) or None,
        )


def _check_columns(names: Sequence[str]) -> None:
    known = (*_REQUIRED, *_OPTIONAL)
    missing = [name for name in _REQUIRED if name not in names]
    if missing:
        raise DataError(f"{_QUESTIONS}: no column {', '.join(missing)}; the first line names the columns {known}")
    for name in names:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
        if name not in known and near:
            raise DataError(f"{_QUESTIONS}: unknown column {name!r}: did you mean {near[0]}?")


def _make_row(fields: dict[str, str], *, task_id: str, where: str) -> TaskRow:
    given = {name: fields[name] for name in ("question", "answer", "family", "unit") if fields.get(name)}
    choices = [text.strip() for text in fields.get("choices", "").split("|") if text.strip()]
    row: dict[str, object] = {"task_id": task_id, "split": "train", "choices": choices, **given}
    try:
        if fields.get("tolerance"):
            row["tolerance"] = float(fields["tolerance"])
        return msgspec.convert(row, TaskRow)
    except (ValueError, msgspec.ValidationError) as error:
        raise DataError(f"{where}: {error}") from error


def _read_patient(path: Path, where: str) -> str:
    """Return PatientID, for grouping: no task, no file and no error holds its text."""
    try:
        return read_patient_key(path)
    except ImageError as error:
        raise DataError(f"{where}: {error}") from error


DICOM_FOLDER = PublicSet(
    name="dicom_folder",
    title="DICOM files of your own",
    page="",
    licence="yours",
    files=(_QUESTIONS, "the DICOM files that it names"),
    note=f"Columns {', '.join(_REQUIRED)}; optional {', '.join(_OPTIONAL)}. Without a split: by PatientID.",
    split_rules=("patient", "image", "published"),
    make_loader=DicomFolderLoader,
)
