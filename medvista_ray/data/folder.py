"""A user's own data: a folder with `tasks.jsonl` and image files under it.

One JSON object a line: `task_id`, `split` (train or held_out), `family`, `question`, `images` (paths below the folder),
`choices` (list of texts, or absent for an open question), `answer` (one of the choices, or text, or a number),
`tolerance` (relative, for numbers) and optionally `spacing_mm` [row, column].
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from medvista_ray.data.manifest import Split
from medvista_ray.errors import DataError, ImageError
from medvista_ray.images.codec import decode, digest_of, encode_npy, encode_png, make_ref
from medvista_ray.images.dicom import read_dicom
from medvista_ray.types.messages import NPY_MIME, PNG_MIME, Choice, ImageRef, Reference, Task
from medvista_ray.types.protocols import TaskRecord

_MIMES = {".png": PNG_MIME, ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".npy": NPY_MIME}
_REQUIRED = ("task_id", "split", "question", "images", "answer")


class FolderTaskSource:
    """The tasks of one split of a folder, in file order."""

    def __init__(self, folder: Path, split: Split, *, families: tuple[str, ...] = ()) -> None:
        path = folder / "tasks.jsonl"
        if not path.is_file():
            raise DataError(f"data.source: {folder} has no tasks.jsonl; see docs/data.md for the format")
        self._folder = folder.resolve()
        self._rows: list[tuple[int, dict[str, Any]]] = []
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if line.strip():
                row = self._parse(line, number)
                if row["split"] == split and (not families or row.get("family", "vqa") in families):
                    self._rows.append((number, row))
        if not self._rows:
            raise DataError(f"data.source: {path} has no task with split {split!r}")

    def __len__(self) -> int:
        """Count the tasks."""
        return len(self._rows)

    def __getitem__(self, index: int) -> TaskRecord:
        """Read the images of one task and make its record."""
        number, row = self._rows[index]
        images: list[ImageRef] = []
        blobs: dict[str, bytes] = {}
        for name in row["images"]:
            ref, data = self._read_image(str(name), number, row)
            images.append(ref)
            blobs[ref.digest] = data
        choices = tuple(Choice(choice_id=str(text), text=str(text)) for text in row.get("choices", ()))
        task = Task(
            task_id=str(row["task_id"]),
            family=str(row.get("family", "vqa")),
            question=str(row["question"]),
            images=tuple(images),
            choices=choices,
            metadata={"source": str(row.get("source", row["images"][0] if row["images"] else ""))},
        )
        tolerance = row.get("tolerance")
        reference = Reference(
            task_id=task.task_id,
            answer=str(row["answer"]),
            tolerance=None if tolerance is None else float(tolerance),
        )
        return TaskRecord(task=task, reference=reference, blobs=blobs)

    def _parse(self, line: str, number: int) -> dict[str, Any]:
        where = f"data.source: {self._folder.name}/tasks.jsonl line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where} is not JSON: {error.msg} at column {error.colno}") from error
        missing = [key for key in _REQUIRED if not isinstance(row, dict) or key not in row]
        if missing:
            raise DataError(f"{where} lacks {', '.join(missing)}")
        choices = [str(text) for text in row.get("choices", ())]
        if choices and str(row["answer"]) not in choices:
            raise DataError(f"{where}: the answer {row['answer']!r} is none of the choices {choices}")
        assert isinstance(row, dict)
        return row

    def _read_image(self, name: str, number: int, row: dict[str, Any]) -> tuple[ImageRef, bytes]:
        where = f"data.source: {self._folder.name}/tasks.jsonl line {number}: image {name!r}"
        path = (self._folder / name).resolve()
        if not path.is_relative_to(self._folder) or not path.is_file():
            raise DataError(f"{where} is no file below the folder")
        spacing = row.get("spacing_mm")
        spacing_mm = None if spacing is None else (float(spacing[0]), float(spacing[1]))
        try:
            data, mime, pixels, header_spacing, modality = _read_file(path)
        except ImageError as error:
            raise DataError(f"{where}: {error}") from error
        height, width = pixels.shape[:2]
        ref = make_ref(
            data, mime=mime, width=width, height=height, spacing_mm=spacing_mm or header_spacing, modality=modality
        )
        assert ref.digest == digest_of(data)
        return ref, data


def _read_file(path: Path) -> tuple[bytes, str, np.ndarray, tuple[float, float] | None, str | None]:
    mime = _MIMES.get(path.suffix.lower())
    if mime is not None:
        data = path.read_bytes()
        return data, mime, decode(data, mime), None, None
    dicom = read_dicom(path)
    if dicom.values.ndim == 3:
        return encode_png(dicom.values), PNG_MIME, dicom.values, dicom.spacing_mm, dicom.modality
    return encode_npy(dicom.values), NPY_MIME, dicom.values, dicom.spacing_mm, dicom.modality
