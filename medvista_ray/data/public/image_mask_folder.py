"""A folder with `images/` and `masks/`: one segmentation task for each mask.

The mask of images/a/b.jpg is masks/a/b.png, and masks/a/b_liver.png is that of its liver. With `labels.json`, {"1":
"liver"}, a mask gives one task for each of these values that is in it; without, every value but 0 counts. A folder
right below images/ stands for a patient.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from medvista_ray.data.files import read_labels
from medvista_ray.data.public.draft import Draft, LoaderOptions, PublicSet, make_reader, short_name
from medvista_ray.data.rows import TaskRow
from medvista_ray.errors import DataError, ImageError

_IMAGES, _MASKS, _LABELS = "images", "masks", "labels.json"


class ImageMaskLoader:
    """Reads pairs of an image and a mask."""

    def __init__(self, folder: Path, options: LoaderOptions) -> None:
        self._images, self._masks, self._labels = folder / _IMAGES, folder / _MASKS, folder / _LABELS
        for needed in (self._images, self._masks):
            if not needed.is_dir():
                raise IMAGE_MASK_FOLDER.refuse(f"there is no folder {needed}")

    @property
    def annotations(self) -> Sequence[Path]:
        """Return the folders, whose time changes with the files in them, and the names of the labels."""
        folders = [Path(where) for top in (self._images, self._masks) for where, _, _ in _walk(top)]
        return [*folders, *([self._labels] if self._labels.is_file() else ())]

    def count(self) -> None:
        """Return None: nobody has counted."""

    def read(self) -> Iterator[Draft]:
        """Yield a task for each mask, or for each label in it."""
        labels = self._read_names()
        for folder, _, names in _walk(self._images):
            stems = {Path(name).stem for name in names}
            for name in sorted(names):
                image = Path(folder) / name
                masks = list(self._find_masks(image, stems))
                if not masks:
                    where = image.relative_to(self._images)
                    raise DataError(
                        f"{_IMAGES}/{where} has no mask {_MASKS}/{where.with_suffix('.png')}; move it away, or add one"
                    )
                for mask, target in masks:
                    yield from self._make_drafts(image, mask, target, labels)

    def _find_masks(self, image: Path, stems: set[str]) -> Iterator[tuple[Path, str]]:
        folder = self._masks / image.parent.relative_to(self._images)
        if (folder / f"{image.stem}.png").is_file():
            yield folder / f"{image.stem}.png", "object"
        for mask in sorted(folder.glob(f"{_escape(image.stem)}_*.png")):
            if mask.stem not in stems:  # else it is the mask of another image
                yield mask, mask.stem.removeprefix(f"{image.stem}_").replace("_", " ")

    def _make_drafts(self, image: Path, mask: Path, target: str, labels: dict[int, str]) -> Iterator[Draft]:
        place = image.relative_to(self._images)
        where = f"{_MASKS}/{mask.relative_to(self._masks)}"
        patient = place.parts[0] if len(place.parts) > 1 else None
        present: list[int | None] = [None]
        if labels:
            try:
                present = [int(value) for value in np.unique(read_labels(mask)) if int(value) in labels]
            except (ImageError, OSError) as error:
                raise DataError(f"{where}: {error}") from error
        for label in present:
            name = target if label is None else labels[label]
            yield Draft(
                where=where,
                row=TaskRow(
                    task_id=f"mask-{short_name(f'{place.as_posix()}/{name}')}",
                    split="train",
                    family="segmentation",
                    question=f"Outline the {name}.",
                    answer_kind="mask",
                    mask_label=label,
                ),
                images=(make_reader(image, where=where),),
                patient=patient,
                mask=mask,
            )

    def _read_names(self) -> dict[int, str]:
        if not self._labels.is_file():
            return {}
        try:
            names = msgspec.json.decode(self._labels.read_bytes(), type=dict[int, str])
        except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
            raise DataError(f"{self._labels}: {error}") from error
        if min(names, default=1) < 1:
            raise DataError(f"{self._labels}: 0 is the background; name values from 1")
        return names


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk a folder in the order of names; hidden files are none of ours."""
    for where, folders, names in os.walk(folder):
        folders.sort()
        yield where, folders, [name for name in names if not name.startswith(".")]


def _escape(stem: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in stem)


IMAGE_MASK_FOLDER = PublicSet(
    name="image_mask_folder",
    title="Images with masks of your own",
    page="",
    licence="yours",
    files=(f"{_IMAGES}/", f"{_MASKS}/", f"{_LABELS} (optional)"),
    note="One segmentation task a mask, or a label. A folder right below images/ stands for a patient.",
    split_rules=("patient", "image"),
    make_loader=ImageMaskLoader,
)
