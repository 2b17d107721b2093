"""SLAKE (Slake1.0) as published: train.json, validate.json (or validation.json), test.json, imgs/xmlabN/source.jpg.

Read of an item: qid, img_name, question, answer, q_lang (en, zh), answer_type (OPEN, CLOSED). With boxes, also
imgs/xmlabN/detection.json: a list of objects with one organ or finding each, {"Liver": [x, y, width, height]} in pixels
from the upper left. The masks are not read: which value stands for which organ is not in the files that we have seen.
What modality an image has is not passed on: some questions ask for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from medvista_ray.data.public.closed import make_row
from medvista_ray.data.public.draft import Draft, Half, LoaderOptions, PublicSet, find_below, make_reader, short_name
from medvista_ray.data.public.json_array import read_json_array
from medvista_ray.data.rows import Box, TaskRow
from medvista_ray.errors import DataError

_FILES: tuple[tuple[Half, tuple[str, ...]], ...] = (
    ("train", ("train.json",)),
    ("validation", ("validate.json", "validation.json")),  # the page and the authors' repository call it differently
    ("test", ("test.json",)),
)
_IMAGES = "imgs"
_BOXES = "detection.json"


class _Item(msgspec.Struct, frozen=True, kw_only=True):
    qid: str | int
    img_name: str
    question: str
    answer: str | int | float
    q_lang: str
    answer_type: str


class SlakeLoader:
    """Reads SLAKE, both languages."""

    def __init__(self, folder: Path, options: LoaderOptions) -> None:
        self._folder = folder
        self._with_boxes = options.with_boxes
        self._files: dict[Half, Path] = {}
        for half, names in _FILES:
            found = [folder / name for name in names if (folder / name).is_file()]
            if not found:
                raise SLAKE.refuse(f"there is no file {folder / names[0]}")
            self._files[half] = found[0]
        if not (folder / _IMAGES).is_dir():
            raise SLAKE.refuse(f"there is no folder {folder / _IMAGES}")

    @property
    def annotations(self) -> Sequence[Path]:
        """Return the three files with questions."""
        return list(self._files.values())

    @property
    def split_rule(self) -> None:
        """Return None: the usual one."""

    def count(self) -> int | None:
        """Count the questions; how many boxes there are shows on the way."""
        return None if self._with_boxes else sum(1 for path in self.annotations for _ in read_json_array(path))

    def read(self) -> Iterator[Draft]:
        """Yield the questions, and before the first of each image its boxes."""
        for half, questions in self._files.items():
            last_image = ""
            for index, found in read_json_array(questions):
                where = f"{questions.name} item {index}"
                try:
                    item = msgspec.convert(found, _Item)
                except msgspec.ValidationError as error:
                    raise DataError(f"{where}: {error}") from error
                path = find_below(self._folder / _IMAGES, item.img_name, where=where)
                if self._with_boxes and item.img_name != last_image:
                    yield from _read_boxes(path, half)
                last_image = item.img_name
                yield Draft(
                    where=where,
                    row=make_row(
                        f"slake-{item.qid}",
                        family=f"slake_{item.q_lang}",
                        question=item.question,
                        answer=str(item.answer),
                        is_closed=item.answer_type.strip().upper() == "CLOSED",
                    ),
                    images=(make_reader(path, where=where),),
                    half=half,
                )


def _read_boxes(image: Path, half: Half) -> Iterator[Draft]:
    """Yield a grounding task for each organ or finding of an image; those without have an empty list, or no file."""
    path = image.with_name(_BOXES)
    where = f"{image.parent.name}/{_BOXES}"
    if not path.is_file():
        return
    try:
        found = msgspec.json.decode(path.read_bytes(), type=list[dict[str, tuple[float, float, float, float]]])
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{where}: {error}") from error
    boxes: dict[str, list[Box]] = {}
    for named in found:
        for what, (x, y, width, height) in named.items():
            boxes.setdefault(what, []).append((x, y, x + width, y + height))
    for what, places in boxes.items():
        yield Draft(
            where=where,
            row=TaskRow(
                task_id=f"slake-boxes-{short_name(f'{image.parent.name}/{what}')}",
                split="train",
                family="slake_boxes",
                question=f"Where is the {what.lower()}? Mark every part of it with a box.",
                answer_kind="boxes",
                boxes=places,
            ),
            images=(make_reader(image, where=where),),
            half=half,
            is_repeated=True,
        )


SLAKE = PublicSet(
    name="slake",
    title="SLAKE 1.0, English and Chinese questions about radiology images",
    page="https://www.med-vqa.com/slake/",
    licence="CC BY 4.0",
    files=(*(" or ".join(names) for _, names in _FILES), f"{_IMAGES}/"),
    note="642 images, split by image as published. --with-boxes adds a grounding task for each organ or finding.",
    split_rules=("published", "image"),
    make_loader=SlakeLoader,
)
