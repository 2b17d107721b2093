"""VQA-RAD as published: `VQA_RAD Dataset Public.json` beside `VQA_RAD Image Folder/`.

Read of an item: qid, phrase_type (freeform, para: training; test_freeform, test_para: test), image_name, image_case_url
(the MedPix case: one patient), question, answer (text or number), answer_type (OPEN, CLOSED; some with a blank behind).
The published split puts questions about one image into both halves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from medvista_ray.data.public.closed import make_row
from medvista_ray.data.public.draft import Draft, LoaderOptions, PublicSet, find_below, make_reader
from medvista_ray.data.public.json_array import read_json_array
from medvista_ray.errors import DataError

_QUESTIONS = "VQA_RAD Dataset Public.json"
_IMAGES = "VQA_RAD Image Folder"


class _Item(msgspec.Struct, frozen=True, kw_only=True):
    qid: str | int
    phrase_type: str
    image_name: str
    question: str
    answer: str | int | float
    answer_type: str
    image_case_url: str | None = None


class VQARadLoader:
    """Reads VQA-RAD."""

    def __init__(self, folder: Path, options: LoaderOptions) -> None:
        self._questions, self._images = folder / _QUESTIONS, folder / _IMAGES
        if not self._questions.is_file():
            raise VQA_RAD.refuse(f"there is no file {self._questions}")
        if not self._images.is_dir():
            raise VQA_RAD.refuse(f"there is no folder {self._images}")

    @property
    def annotations(self) -> Sequence[Path]:
        """Return the one file with questions."""
        return (self._questions,)

    @property
    def split_rule(self) -> None:
        """Return None: the usual one."""

    def count(self) -> int:
        """Count the questions."""
        return sum(1 for _ in read_json_array(self._questions))

    def read(self) -> Iterator[Draft]:
        """Yield the questions."""
        for index, found in read_json_array(self._questions):
            where = f"{_QUESTIONS} item {index}"
            try:
                item = msgspec.convert(found, _Item)
            except msgspec.ValidationError as error:
                raise DataError(f"{where}: {error}") from error
            path = find_below(self._images, item.image_name, where=where)
            yield Draft(
                where=where,
                row=make_row(
                    f"vqa_rad-{item.qid}",
                    family="vqa_rad",
                    question=item.question,
                    answer=str(item.answer),
                    is_closed=item.answer_type.strip().upper() == "CLOSED",
                ),
                images=(make_reader(path, where=where),),
                half="test" if item.phrase_type.startswith("test_") else "train",
                patient=item.image_case_url or item.image_name,
            )


VQA_RAD = PublicSet(
    name="vqa_rad",
    title="VQA-RAD, questions of clinicians about radiology images",
    page="https://osf.io/89kps/",
    licence="CC0 1.0",
    files=(_QUESTIONS, f"{_IMAGES}/"),
    note="2,248 questions. The published split has images in both halves: the default split is by MedPix case.",
    split_rules=("patient", "published", "image"),
    make_loader=VQARadLoader,
)
