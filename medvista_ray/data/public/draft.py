"""What a loader hands on: one question, before its images are stored and its split is chosen; and what a loader is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from medvista_ray.data.files import MIMES, read_dicom_image
from medvista_ray.data.rows import TaskRow
from medvista_ray.errors import DataError, ImageError
from medvista_ray.types.messages import HeaderValue

Half = Literal["train", "validation", "test"]
SplitRule = Literal["published", "patient", "image"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RawImage:
    """One image in one of the formats of a folder, not decoded yet: most are seen many times, and stored once."""

    data: bytes
    mime: str
    spacing_mm: tuple[float, float] | None = None  # (row, column)
    modality: str | None = None  # DICOM code
    header: Mapping[str, HeaderValue] = field(default_factory=dict)  # allow-listed DICOM fields


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draft:
    """One question. Its images are read only when they are wanted: a preparation that goes on skips what it has."""

    where: str  # "train.json item 17", for people
    row: TaskRow  # without images, mask and patient; its split is not read
    images: tuple[Callable[[], RawImage], ...]
    half: Half | None = None  # as published
    patient: str | None = None  # whatever images of one person have in common; a pseudonym is written in its place
    mask: Path | None = None  # PNG
    is_repeated: bool = False  # the same task_id may come again, and is the same task then


class Loader(Protocol):
    """Reads one data set from a folder; made only where the files that it always needs are there."""

    @property
    def annotations(self) -> Iterable[Path]:
        """Return the files with the questions, and of one's own files all: what a preparation depends on."""

    @property
    def split_rule(self) -> SplitRule | None:
        """Return how these files are split unless the user says; None = the first of `PublicSet.split_rules`."""

    def read(self) -> Iterator[Draft]:
        """Yield the questions in the order of the files, in constant memory."""

    def count(self) -> int | None:
        """Return how many there are; None where only reading would tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicSet:
    """A data set, or a kind of folder, that `medvista data prepare` knows."""

    name: str
    title: str
    page: str  # where it is published; "" for files of one's own
    licence: str
    files: tuple[str, ...]  # what is read, below the folder; any one of those joined by " or "
    note: str
    split_rules: tuple[SplitRule, ...]  # the first is the default
    make_loader: Callable[[Path, LoaderOptions], Loader]

    @property
    def command(self) -> str:
        """Return the command that prepares it."""
        return f"medvista data prepare {self.name} --from FOLDER"

    def refuse(self, what: str) -> DataError:
        """Make the error of a folder that does not hold this data set."""
        published = f"published at {self.page}, " if self.page else ""
        return DataError(
            f"{self.name}: {what}. {self.title} ({published}licence: {self.licence}) is not downloaded: "
            f"get it under its terms, then run `{self.command}` on a folder with {', '.join(self.files)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderOptions:
    """What a user may ask of a loader."""

    with_boxes: bool = False  # slake: a task for the boxes of each organ or finding too


def find_below(folder: Path, name: str, *, where: str) -> Path:
    """Return a file that an annotation names; `DataError` if it is none below the folder."""
    try:
        path = (folder / name).resolve()
        is_there = path.is_relative_to(folder.resolve()) and path.is_file()
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: {name!r}: {error}") from error
    if not is_there:
        raise DataError(f"{where}: {name!r} is no file below {folder}")
    return path


def short_name(text: str) -> str:
    """Return 16 letters that stand for a text: names of files may name a patient."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_reader(path: Path, *, where: str) -> Callable[[], RawImage]:
    """Return the function that reads an image later: the bytes of a PNG, JPEG or npy file, else the pixels of a DICOM.

    `DataError` says where an image is named that cannot be read.
    """

    def read_later() -> RawImage:
        try:
            mime = MIMES.get(path.suffix.lower())
            if mime is not None:
                return RawImage(data=path.read_bytes(), mime=mime)
            image = read_dicom_image(path)
        except (ImageError, OSError) as error:
            raise DataError(f"{where}: {path.name}: {error}") from error
        ref = image.ref
        return RawImage(
            data=image.data, mime=ref.mime, spacing_mm=ref.spacing_mm, modality=ref.modality, header=image.header
        )

    return read_later
