"""PathVQA as published in Parquet: `train-*.parquet`, `validation-*.parquet`, `test-*.parquet`, also below `data/`.

Read of a row: image (a struct with `bytes`, JPEG or PNG), question, answer. The first release keeps its questions in
pickles. A pickle runs code when it is read, so none is ever read here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medvista_ray.data.public.closed import make_row
from medvista_ray.data.public.draft import Draft, Half, LoaderOptions, PublicSet, RawImage
from medvista_ray.errors import DataError, MissingPackageError
from medvista_ray.types.messages import PNG_MIME

_HALVES: tuple[Half, ...] = ("train", "validation", "test")
_COLUMNS = ("image", "question", "answer")
_BATCH_ROWS = 32
_MAGICS = {b"\x89PNG": PNG_MIME, b"\xff\xd8\xff": "image/jpeg"}


class PathVQALoader:
    """Reads PathVQA; needs pyarrow."""

    def __init__(self, folder: Path, options: LoaderOptions) -> None:
        places = (folder, folder / "data")
        self._files = {
            half: sorted(path for place in places for path in place.glob(f"{half}-*.parquet")) for half in _HALVES
        }
        if not self._files["train"] or not self._files["test"]:
            has_pickles = any(folder.glob("**/*.pkl"))
            why = "; its pickles are not read, since a pickle runs code" if has_pickles else ""
            raise PATH_VQA.refuse(f"no train-*.parquet and test-*.parquet in {folder} or {folder / 'data'}{why}")
        self._parquet = _import_parquet()

    @property
    def annotations(self) -> Sequence[Path]:
        """Return the shards."""
        return [path for half in _HALVES for path in self._files[half]]

    @property
    def split_rule(self) -> None:
        """Return None: the usual one."""

    def count(self) -> int:
        """Add up what the footers say."""
        return sum(self._open(path).metadata.num_rows for path in self.annotations)

    def read(self) -> Iterator[Draft]:
        """Yield the rows."""
        for half in _HALVES:
            number = 0
            for path in self._files[half]:
                for index, row in enumerate(self._read_rows(path)):
                    yield _make_draft(row, half=half, where=f"{path.name} row {index}", number=number)
                    number += 1

    def _open(self, path: Path) -> Any:
        from pyarrow import ArrowException  # type: ignore[import-untyped]

        try:
            file = self._parquet.ParquetFile(path, pre_buffer=False)
        except (ArrowException, OSError, ValueError) as error:
            raise DataError(f"{path}: {error}") from error
        missing = set(_COLUMNS) - set(file.schema_arrow.names)
        if missing:
            raise DataError(f"{path}: no column {', '.join(sorted(missing))}")
        return file

    def _read_rows(self, path: Path) -> Iterator[dict[str, Any]]:
        with self._open(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(_COLUMNS), use_threads=False):
                yield from batch.to_pylist()


def _make_draft(row: dict[str, Any], *, half: Half, where: str, number: int) -> Draft:
    image, question, answer = (row[column] for column in _COLUMNS)
    data = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(data, bytes) or not isinstance(question, str) or not isinstance(answer, str):
        raise DataError(f"{where}: expected an image with bytes, and texts as question and answer")
    mime = next((mime for magic, mime in _MAGICS.items() if data.startswith(magic)), "unknown")
    return Draft(
        where=where,
        row=make_row(
            f"path_vqa-{half}-{number}",
            family="path_vqa",
            question=question,
            answer=answer,
            is_closed=answer.strip().casefold() in ("yes", "no"),
        ),
        images=(lambda: RawImage(data=data, mime=mime),),
        half=half,
    )


def _import_parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingPackageError("path_vqa comes as Parquet: pip install 'medvista-ray[datasets]'") from error
    return parquet


PATH_VQA = PublicSet(
    name="path_vqa",
    title="PathVQA, questions made from captions of pathology textbooks",
    page="https://huggingface.co/datasets/flaviagiammarino/path-vqa",
    licence="MIT for the data set; the images belong to the publishers of the books and the PEIR library",
    files=("train-*.parquet", "validation-*.parquet", "test-*.parquet"),
    note="32,632 questions about 4,289 images, split by image as published. Needs pyarrow.",
    split_rules=("published", "image"),
    make_loader=PathVQALoader,
)
