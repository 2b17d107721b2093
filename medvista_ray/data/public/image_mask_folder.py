"""A folder with `images/` and `masks/`: one segmentation task for each mask.

The mask of images/a/b.jpg is masks/a/b.png, and masks/a/b_liver.png is that of its liver; where there is an image b_1
too, b_1_liver.png is that of b_1. With `labels.json`, {"1": "liver"}, a mask gives one task for each of these values
that is in it; without, every value but 0 counts. A folder right below images/ stands for a patient.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
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
    def annotations(self) -> Iterator[Path]:
        """Yield the names of the labels, the images and the masks."""
        if self._labels.is_file():
            yield self._labels
        for top in (self._images, self._masks):
            for where, _, names in _walk(top):
                yield from (Path(where) / name for name in sorted(names))

    @property
    def split_rule(self) -> None:
        """Return None: the usual one."""

    def count(self) -> None:
        """Return None: nobody has counted."""

    def read(self) -> Iterator[Draft]:
        """Yield a task for each mask, or for each label in it."""
        labels = self._read_names()
        for folder, _, names in _walk(self._images):
            place = Path(folder).relative_to(self._images)
            images = _by_stem(place, names)
            masks = self._share_out(place, images)
            for stem, name in sorted(images.items(), key=lambda found: found[1]):
                if not masks[stem]:
                    raise DataError(
                        f"{_IMAGES}/{place / name} has no mask {_MASKS}/{place / stem}.png; move it away, or add one"
                    )
                for mask, target in masks[stem]:
                    yield from self._make_drafts(Path(folder) / name, mask, target, labels)

    def _share_out(self, place: Path, images: Mapping[str, str]) -> Mapping[str, list[tuple[Path, str]]]:
        """Give each mask of a folder to the image with the longest stem that its own begins with, and say of what."""
        found: dict[str, list[tuple[Path, str]]] = {stem: [] for stem in images}
        for mask in sorted((self._masks / place).glob("*.png"), key=lambda path: (path.stem not in images, path)):
            parts = mask.stem.split("_")
            for length in range(len(parts), 0, -1):
                stem = "_".join(parts[:length])
                if stem in images:
                    found[stem].append((mask, " ".join(parts[length:]).strip() or "object"))
                    break
        for stem, masks in found.items():
            named: dict[str, Path] = {}
            for mask, target in masks:
                if (first := named.setdefault(target, mask)) != mask:
                    raise DataError(
                        f"{_MASKS}/{place / first.name} and {mask.name} are both that of the {target} in {images[stem]}"
                    )
        return found

    def _make_drafts(self, image: Path, mask: Path, target: str, labels: dict[int, str]) -> Iterator[Draft]:
        place = image.relative_to(self._images)
        where = f"{_MASKS}/{mask.relative_to(self._masks)}"
        patient = place.parts[0] if len(place.parts) > 1 else None
        present: list[int | None] = [None]
        if labels:
            try:
                found = [int(value) for value in np.unique(read_labels(mask)) if int(value) in labels]
                present = [*found] or [min(labels)]  # an empty one, which is counted
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


def _by_stem(place: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the name of each image of a folder by its stem, which says whose a mask is."""
    found: dict[str, str] = {}
    for name in sorted(names):
        stem = Path(name).stem
        if (first := found.setdefault(stem, name)) != name:
            raise DataError(f"{_IMAGES}/{place / first} and {name} would share {_MASKS}/{place / stem}.png: rename one")
    return found


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
