"""The optional families of the embedded set, from two Debian packages: only where their release is at hand."""

from __future__ import annotations

import platform
import re
import shutil
from collections import Counter

import numpy as np
import pytest
from embedded_checks import assert_number_tells_nothing

from medvista_ray.data.embedded import DEBIAN_FAMILIES, FAMILIES, EmbeddedTaskSource
from medvista_ray.data.families.atlas import STRUCTURES, list_regions, load_atlas
from medvista_ray.data.manifest import load_manifest
from medvista_ray.data.packages import DEBIAN_PACKAGES, prepare_embedded
from medvista_ray.errors import DataError
from medvista_ray.images.codec import decode
from medvista_ray.rewards.grading import is_correct

RELEASE = "12"
pytestmark = pytest.mark.xdist_group("embedded")

SPLITS = ("train", "held_out")


def is_release_at_hand():
    try:
        system = platform.freedesktop_os_release()
    except OSError:
        return False
    return system.get("ID") == "debian" and system.get("VERSION_ID") == RELEASE and bool(shutil.which("apt-get"))


@pytest.fixture(scope="module")
def records():
    if not all(package.is_prepared for package in DEBIAN_PACKAGES) and not is_release_at_hand():
        pytest.skip(f"the Debian packages come from release {RELEASE}, which this machine is not")
    try:
        prepare_embedded(debian=True)
    except DataError as error:  # a Debian without package lists, or without a mirror: these packages are optional
        pytest.skip(f"the optional Debian packages cannot be fetched here: {error}")
    return {
        (split, family): [source[index] for index in range(len(source))]
        for split in SPLITS
        for family in DEBIAN_FAMILIES
        for source in [EmbeddedTaskSource(split, families=(family,))]
    }


def test_files_are_those_of_the_manifest_and_answers_are_right(records):
    names = {package.name for package in DEBIAN_PACKAGES}
    for entry in load_manifest():
        if entry.package in names:
            assert entry.locate().is_file()
    for found in records.values():
        for record in found:
            assert is_correct(record.reference.answer, task=record.task, reference=record.reference)
            assert not is_correct("unknown", task=record.task, reference=record.reference)


def test_the_number_of_a_task_does_not_tell_its_answer(records):
    for found in records.values():
        assert_number_tells_nothing(found)


def test_they_are_listed_by_name_alone(records):
    assert not set(FAMILIES) & set(DEBIAN_FAMILIES)
    source = EmbeddedTaskSource("held_out")
    assert len(source) == sum(family.counts[1] for family in FAMILIES.values())


def test_structures_take_turns_and_their_place_among_the_choices_tells_nothing(records):
    for split in SPLITS:
        found = records[split, "structure_at_point"]
        counts = Counter(record.reference.answer for record in found)
        assert set(counts) == set(STRUCTURES.values())
        assert len(set(counts.values())) == 1
        places = Counter(
            [choice.choice_id for choice in record.task.choices].index(record.reference.answer) for record in found
        )
        assert max(places.values()) <= 0.45 * len(found)
        assert all(len({choice.choice_id for choice in record.task.choices}) == 4 for record in found)


def test_sides_follow_the_convention_of_the_picture(records):
    """The patient's right is on the left of the picture: the side of the ring tells the answer, both as often."""
    for split in SPLITS:
        found = records[split, "side_of_patient"]
        assert set(Counter(record.reference.answer for record in found).values()) == {len(found) // 2}
        for record in found:
            (ref,) = record.task.images
            x = record.reference.regions[0][[0, 2]].mean()
            assert (record.reference.answer == "right") == (x < ref.width / 2)


def test_names_of_regions_agree_with_where_they_are(records):
    """RAS order: x grows to the right, so the right region of a pair has the larger x."""
    _, labels = load_atlas("train")
    for left, right in list_regions("train").values():
        means = [np.argwhere(labels == label)[:, 0].mean() for label in (left, right)]
        assert means[0] < labels.shape[0] / 2 < means[1]


def test_patches_have_the_mean_that_the_values_have(records):
    for split in SPLITS:
        found = records[split, "hu_at_patch"]
        for record in found:
            (ref,) = record.task.images
            values = decode(record.blobs[ref.digest], ref.mime)
            corners = [round(int(text) * ref.width / 1000) for text in re.findall(r"\d+", record.task.question)[:4]]
            x0, y0, x1, y1 = corners
            assert is_correct(f"{values[y0:y1, x0:x1].mean():.1f} HU", task=record.task, reference=record.reference)
        answers = [float(record.reference.answer) for record in found]
        assert max(np.mean(np.abs(np.array(answers) - guess) <= 10) for guess in range(-200, 1500, 2)) <= 0.4


def test_no_image_is_on_both_sides(records):
    digests = [
        {digest for family in DEBIAN_FAMILIES for record in records[split, family] for digest in record.blobs}
        for split in SPLITS
    ]
    assert not digests[0] & digests[1]
