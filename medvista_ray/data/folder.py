"""A folder with `tasks.jsonl` and files below it, as a task source. Names of files stay here.

Keeps the place of each line, not what stands in it: 200,000 rows take a few megabytes. `rows.py` says what a line may
hold.
"""

from __future__ import annotations

import hashlib
import posixpath
from array import array
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from medvista_ray.data.files import ImageFile, read_image, read_mask, read_volume
from medvista_ray.data.manifest import Split
from medvista_ray.data.rows import TaskRow, check_inside, make_reference, make_task, parse_row
from medvista_ray.errors import DataError, ImageError
from medvista_ray.types.messages import ImageRef, VolumeRef
from medvista_ray.types.protocols import TaskRecord

T = TypeVar("T")
TASKS_FILE = "tasks.jsonl"
_SPLITS: tuple[Split, ...] = ("train", "held_out")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Places:
    """Where the chosen lines of a file stand."""

    offsets: np.ndarray  # int64 [N] bytes from the start of the file
    numbers: np.ndarray  # int64 [N] line numbers from 1


class FolderTaskSource:
    """The tasks of one split of a folder, in file order.

    Args:
        folder: holds tasks.jsonl.
        split: which half.
        families: what to keep; empty = all.
        max_tasks: how many of these, from the first on; 0 = all.
    """

    def __init__(self, folder: Path, split: Split, *, families: tuple[str, ...] = (), max_tasks: int = 0) -> None:
        self._path = folder / TASKS_FILE
        if not self._path.is_file():
            raise DataError(f"data.source: {folder} has no {TASKS_FILE}; see docs/data.md for the format")
        self._folder = folder.resolve()
        self._places = self._index(split, families, max_tasks)
        if not len(self._places.offsets):
            wanted = f" and a family of {', '.join(families)} (data.families)" if families else ""
            raise DataError(f"data.source: {self._path} has no task with split {split!r}{wanted}")

    def __len__(self) -> int:
        """Count the tasks."""
        return len(self._places.offsets)

    def __getitem__(self, index: int) -> TaskRecord:
        """Read the files of one task and make its record."""
        number, row = self.read_row(index)
        images = [self._read_image(row, place, number) for place in range(len(row.images))]
        volumes = [self._read_volume(row, name, number) for name in row.volumes]
        task = make_task(
            row,
            images=tuple(image.ref for image in images),
            volumes=tuple(ref for _, ref in volumes),
            headers={image.ref.digest: image.header for image in images if image.header},
        )
        blobs = {image.ref.digest: image.data for image in images} | {ref.digest: data for data, ref in volumes}
        mask = self._read_mask(row, images[0].ref, number) if images else None
        return TaskRecord(task=task, reference=make_reference(row, mask=mask), blobs=blobs)

    @classmethod
    def find_splits(cls, folder: Path) -> set[Split]:
        """Return the splits that have a task; stops at the line that shows the second."""
        found: set[Split] = set()
        with (folder / TASKS_FILE).open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.removeprefix(BOM_UTF8).strip():
                    found.add(
                        parse_row(
                            line.removeprefix(BOM_UTF8), where=f"data.source: {folder.name}/{TASKS_FILE} line {number}"
                        ).split
                    )
                if len(found) == len(_SPLITS):
                    break
        return found

    def read_row(self, index: int) -> tuple[int, TaskRow]:
        """Return the line number and the row of a task, without its files."""
        if not 0 <= index < len(self):
            raise IndexError(f"task {index} of {len(self)}")
        number = int(self._places.numbers[index])
        with self._path.open("rb") as file:
            file.seek(int(self._places.offsets[index]))
            return number, parse_row(file.readline(), where=self._where(number))

    def _index(self, split: Split, families: tuple[str, ...], max_tasks: int) -> _Places:
        """Check every line, and the files of those that are chosen."""
        offsets, numbers, ids = array("q"), array("q"), array("Q")
        patients = {half: array("Q") for half in _SPLITS}
        pictures = {half: array("Q") for half in _SPLITS}
        seen: dict[str, str] = {}  # the files of the last line: questions about one image follow each other
        for number, offset, row in self._rows():
            ids.append(_short_digest(str(row.task_id)))
            if row.patient is not None:
                patients[row.split].append(_short_digest(row.patient))
            pictures[row.split].extend(map(_short_digest, _picture_names(row)))
            is_wanted = row.split == split and (not families or row.family in families)
            if is_wanted and not (max_tasks and len(offsets) >= max_tasks):
                offsets.append(offset)
                numbers.append(number)
                files = {name: what for what, names in row.files.items() for name in names}
                for name, what in files.items():
                    if name not in seen:
                        self._find(what, name, number)
                seen = files
        if len(np.unique(np.array(ids, np.uint64))) != len(ids):
            self._refuse_double_ids()
        if _overlap(patients):
            self._refuse_shared(lambda row: () if row.patient is None else (row.patient,), "the patient")
        if _overlap(pictures):
            self._refuse_shared(_picture_names, "an image or volume")
        return _Places(offsets=np.array(offsets, np.int64), numbers=np.array(numbers, np.int64))

    def _rows(self) -> Iterator[tuple[int, int, TaskRow]]:
        """Yield (line number, offset, row) of every line that is not blank."""
        offset = 0
        with self._path.open("rb") as file:
            if file.read(len(BOM_UTF8)) == BOM_UTF8:
                offset = len(BOM_UTF8)
            file.seek(offset)
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, offset, parse_row(line, where=self._where(number))
                offset += len(line)

    def _refuse_double_ids(self) -> None:
        """Name two lines with one task_id; only now are the ids kept."""
        lines: dict[str, int] = {}
        for number, _, row in self._rows():
            first = lines.setdefault(str(row.task_id), number)
            if first != number:
                raise DataError(f"{self._where(number)}: task_id {row.task_id!r} stands on line {first} already")

    def _refuse_shared(self, keys_of: Callable[[TaskRow], Iterable[str]], what: str) -> None:
        """Name two lines in different splits that share a key; only now are the keys kept."""
        lines: dict[str, tuple[int, Split]] = {}
        for number, _, row in self._rows():
            for key in keys_of(row):
                first, split = lines.setdefault(key, (number, row.split))
                if split != row.split:
                    raise DataError(
                        f"{self._where(number)}: {what} of this {row.split} line is in {split} on line {first}: "
                        "split by patient"
                    )

    def _where(self, number: int) -> str:
        return f"data.source: {self._folder.name}/{TASKS_FILE} line {number}"

    def _find(self, what: str, name: str, number: int) -> Path:
        where = f"{self._where(number)}: {what} {name!r}"
        try:
            path = (self._folder / name).resolve()
            is_there = path.is_relative_to(self._folder) and path.is_file()
        except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
            raise DataError(f"{where}: {error}") from error
        if not is_there:
            raise DataError(f"{where} is no file below the folder")
        return path

    def _read(self, what: str, name: str, number: int, read: Callable[[Path], T]) -> T:
        """Read a file of a line; what is wrong with it becomes one line that says where."""
        path = self._find(what, name, number)
        try:
            return read(path)
        except (ImageError, OSError, ValueError) as error:
            raise DataError(f"{self._where(number)}: {what} {name!r}: {error}") from error

    def _read_image(self, row: TaskRow, place: int, number: int) -> ImageFile:
        def read(path: Path) -> ImageFile:
            image = read_image(path, spacing_mm=row.spacing_mm, modality=row.modality)
            if place == 0:
                check_inside(row, width=image.ref.width, height=image.ref.height)
            return replace(image, header=row.headers[place]) if row.headers else image

        return self._read("image", row.images[place], number, read)

    def _read_volume(self, row: TaskRow, name: str, number: int) -> tuple[bytes, VolumeRef]:
        return self._read("volume", name, number, lambda path: read_volume(path, modality=row.modality))

    def _read_mask(self, row: TaskRow, image: ImageRef, number: int) -> np.ndarray | None:
        if row.mask is None:
            return None
        size_px = (image.width, image.height)
        return self._read("mask", row.mask, number, lambda path: read_mask(path, label=row.mask_label, size_px=size_px))


def _picture_names(row: TaskRow) -> set[str]:
    """Return the images and volumes of a row, each under one name."""
    return {posixpath.normpath(name) for name in (*row.images, *row.volumes)}


def _overlap(digests: dict[Split, array[int]]) -> bool:
    train, held_out = (np.array(digests[half], np.uint64) for half in _SPLITS)
    return len(np.intersect1d(train, held_out)) > 0


def _short_digest(text: str) -> int:
    """Return 64 bits that stand for a text; where two are equal the texts themselves are compared."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
