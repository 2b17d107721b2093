"""The embedded set, as far as installed packages go: counts, the same bytes, right answers, no leak.

What has to be fetched first is walked in tests/tools_heavy.
"""

from __future__ import annotations

import dataclasses
import math
import re
import struct
from collections import Counter

import numpy as np
import pytest
from embedded_checks import assert_number_tells_nothing, best_by_residue

from medvista_ray.data import embedded
from medvista_ray.data.embedded import FAMILIES, GROUPS, EmbeddedTaskSource, families_of
from medvista_ray.data.families import letter_slice
from medvista_ray.data.families.caliper import TOLERANCE
from medvista_ray.data.families.tissue import TISSUES
from medvista_ray.data.letters import LETTERS
from medvista_ray.data.manifest import find_entry, load_manifest
from medvista_ray.data.packages import DEBIAN_PACKAGES, PACKAGES
from medvista_ray.data.us_frames import load_frames
from medvista_ray.errors import ConfigError, DataError, MissingPackageError
from medvista_ray.images.codec import decode, digest_of
from medvista_ray.images.volumes import cut_slice, decode_volume
from medvista_ray.rewards.grading import is_correct
from medvista_ray.types.messages import PNG_MIME

pytestmark = pytest.mark.xdist_group("scenes")  # one process makes what its tests share

SPLITS = ("train", "held_out")
FETCHED = ("nuclei_count", "nuclei_box", "nuclei_mask")
INSTALLED = tuple(name for name in FAMILIES if name not in FETCHED)
STRIDE = {
    **dict.fromkeys(("insert_mask", "insert_box"), 15),
    "zoom": 8,
    "window": 8,
    "measure": 8,
    "slice": 8,
}  # drawn alike: a sample


@pytest.fixture(scope="module")
def records():
    """Every item of the families that are lists, a sample of those that are drawn."""
    made = {}
    for split in SPLITS:
        for family in INSTALLED:
            source = EmbeddedTaskSource(split, families=(family,))
            made[split, family] = [source[index] for index in range(0, len(source), STRIDE.get(family, 1))]
    return made


def bytes_of(record):
    reference = record.reference
    parts = [record.task, reference.answer, reference.aliases, reference.tolerance, reference.boxes.tolist()]
    mask = b"" if reference.mask is None else reference.mask.tobytes()
    return repr(parts), mask, sorted(record.blobs.items())


def own_answer(record):
    """Write down the reference's own answer the way a policy would."""
    if record.task.answers_with != "boxes":
        return record.reference.answer
    (ref,) = record.task.images
    scale = np.array([1000 / ref.width, 1000 / ref.height] * 2)
    return str((record.reference.boxes * scale).round(1).tolist())


def test_about_1200_items_in_three_groups():
    per_group = {group: sum(sum(FAMILIES[name].counts) for name in families_of(group)) for group in GROUPS}
    assert 1150 <= sum(per_group.values()) <= 1300
    assert 560 <= per_group["vqa"] <= 680
    assert 260 <= per_group["segmentation"] <= 330
    assert 260 <= per_group["grounding"] <= 330
    for family in FAMILIES.values():
        assert family.counts[0] >= family.counts[1] > 0


@pytest.mark.parametrize("split", SPLITS)
def test_a_prefix_of_the_list_is_balanced(split):
    side = SPLITS.index(split)
    places = embedded._interleave(tuple(FAMILIES), side)
    assert len(set(places)) == len(places) == sum(family.counts[side] for family in FAMILIES.values())
    prefix = Counter(family for family, _ in places[:200])
    for name, family in FAMILIES.items():
        assert abs(prefix[name] - 200 * family.counts[side] / len(places)) <= 1.5
        assert [place for found, place in places if found == name] == list(range(family.counts[side]))


def test_an_index_gives_the_same_bytes_in_any_order(records):
    for split in SPLITS:
        source = EmbeddedTaskSource(split, families=INSTALLED)
        wanted = {record.task.task_id: bytes_of(record) for key in records for record in records[key]}
        checked = 0
        for index in reversed(range(0, len(source), 11)):
            record = source[index]
            if record.task.task_id in wanted:
                assert bytes_of(record) == wanted[record.task.task_id]
                checked += 1
        assert checked >= 10


def test_the_reference_s_own_answer_is_right_and_another_is_wrong(records):
    for (_, family), found in records.items():
        for record in found:
            assert record.task.family == family
            assert record.reference.task_id == record.task.task_id
            if record.task.answers_with == "mask":
                (ref,) = record.task.images
                assert record.reference.mask.shape == (ref.height, ref.width)
                assert record.reference.mask.dtype == bool
                assert 0 < record.reference.mask.mean() < 0.6
                continue
            assert is_correct(own_answer(record), task=record.task, reference=record.reference), record.task.task_id
            for alias in record.reference.aliases:
                assert is_correct(alias, task=record.task, reference=record.reference)
            for wrong in ("unknown", "", "[]", "-1"):
                assert not is_correct(wrong, task=record.task, reference=record.reference)


def test_closed_answers_are_balanced():
    for split in SPLITS:
        for family, answers in (("zoom", LETTERS), ("window", LETTERS), ("slice", LETTERS), ("tissue", TISSUES)):
            source = EmbeddedTaskSource(split, families=(family,))
            counts = Counter(source[index].reference.answer for index in range(len(source)))
            assert set(counts) == set(answers)
            assert max(counts.values()) <= 0.4 * len(source)
            assert min(counts.values()) >= 0.15 * len(source)


def test_the_number_of_a_task_does_not_tell_its_answer(records):
    """No closed answer is a function of index mod k: the best guess by residue is far from always right."""
    for (_, family), found in records.items():
        if STRIDE.get(family, 1) == 1:
            assert_number_tells_nothing(found)
    for split in SPLITS:  # those that need a file which is not installed: whose turn it is
        for family in embedded._SHUFFLED:
            turns = embedded._turns(family, split)
            assert sorted(turns) == list(range(len(turns)))
            for answers in (2, 3, 16):
                assert best_by_residue([turn % answers for turn in turns]) < 0.9


def test_a_count_is_asked_in_a_unit_of_its_own(records):
    found = [record for split in SPLITS for record in records[split, "header"]]
    asked = {record.task.unit: record for record in found if record.task.question.startswith("How many")}
    assert asked.keys() == {"bits", "frames"}
    for record in asked.values():
        assert not is_correct(f"{record.reference.answer} mm", task=record.task, reference=record.reference)


def test_a_header_question_has_no_answer_that_is_nearly_always_right(records):
    for split in SPLITS:
        answers = Counter(record.reference.answer for record in records[split, "header"])
        assert max(answers.values()) <= 0.15 * sum(answers.values())


def test_no_image_and_no_file_stands_on_both_sides(records):
    digests = {
        split: {digest for family in INSTALLED for record in records[split, family] for digest in record.blobs}
        for split in SPLITS
    }
    assert not digests["train"] & digests["held_out"]
    files = {split: set() for split in SPLITS}
    for entry in load_manifest():
        if embedded.SOURCE in entry.sets or embedded._DRAWN_FROM in entry.sets:
            files[entry.split].add((entry.sha256, entry.families))
    shared = files["train"] & files["held_out"]
    # one average brain, axial and coronal or sagittal; one brain, axial or coronal; one head, lower or upper slices
    assert {families for _, families in shared} == {
        ("tissue", "tissue_mask"),
        ("structure_at_point", "side_of_patient"),
        ("hu_at_patch",),
    }


def test_images_of_one_subject_stay_on_one_side():
    """Several files show one image: as a whole, cut or coded in another way."""
    split_of = {}
    for entry in load_manifest():
        if embedded.SOURCE in entry.sets or embedded._DRAWN_FROM in entry.sets:
            split_of.setdefault(entry.file.rsplit("/", 1)[-1], set()).add(entry.split)
    for files in (
        ("color3d_jpeg_baseline.dcm", "examples_ybr_color.dcm"),
        ("MR-SIEMENS-DICOM-WithOverlays.dcm",),
        ("US1_UNCR.dcm",),
        ("693_UNCR.dcm",),
        ("OBXXXX1A.dcm",),
    ):
        assert {split for file in files for split in split_of[file]} == {"train"}


def test_no_source_has_more_than_its_share(records):
    for split in SPLITS:
        for family in ("zoom", "window", "insert_mask", "insert_box", "measure", "header"):
            source = EmbeddedTaskSource(split, families=(family,))
            counts = Counter(embedded_source(record) for record in records[split, family])
            if family == "header":
                assert max(counts.values()) <= 12
            else:
                assert max(counts.values()) <= math.ceil(len(source) / len(counts))


def embedded_source(record):
    return record.task.metadata["source"]


def test_tasks_hold_what_is_allowed_and_nothing_of_the_reference(records):
    for found in records.values():
        for record in found:
            task = record.task
            assert task.metadata.keys() == {"source", "synthetic_insert"}
            assert sorted(task.digests) == sorted(record.blobs)
            for digest, data in record.blobs.items():
                assert digest_of(data) == digest
            for ref in task.images:
                assert decode(record.blobs[ref.digest], ref.mime).shape[:2] == (ref.height, ref.width)
                if ref.mime == PNG_MIME:
                    assert chunk_names(record.blobs[ref.digest]) <= {b"IHDR", b"IDAT", b"IEND"}
            if task.answers_with == "text":
                bare = dataclasses.replace(task, question="", images=())
                words = (record.reference.answer, *record.reference.aliases)
                said = repr(bare).lower() + " ".join(task.question.lower().split())
                assert not [word for word in words if len(word) > 3 and word.lower() in said], task


def chunk_names(png):
    names, place = set(), 8
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        names.add(png[place + 4 : place + 8])
        place += 12 + length
    return names


def test_drawn_letters_are_labelled_and_real_measurements_are_not(records):
    for (_, family), found in records.items():
        is_drawn = family not in ("ocr", "caliper", "header", "tissue_mask", "nuclei_count")
        assert {record.task.metadata["synthetic_insert"] for record in found} == {is_drawn}


def test_the_first_view_of_a_volume_does_not_depend_on_the_letter():
    for split in SPLITS:
        for index in range(6):
            scene = letter_slice.draw_slice_scene(np.random.default_rng(index), split, index)
            middle = scene.values.shape[2] // 2
            views, films = [], []
            for letter in LETTERS:
                other = letter_slice.with_letter(scene, letter)
                views.append(
                    cut_slice(other.values, other.spacing_mm, plane="axial", index=middle).values,
                )
                films.append(
                    cut_slice(other.values, other.spacing_mm, plane=scene.plane, index=scene.index).values,
                )
            assert all(np.array_equal(views[0], view) for view in views)
            assert len({film.tobytes() for film in films}) == len(LETTERS)


def test_a_letter_stands_in_the_slice_that_the_question_names_the_right_way_round():
    for split in SPLITS:
        source = EmbeddedTaskSource(split, families=("slice",))
        for index in range(4):
            record = source[index]
            (volume,) = record.task.volumes
            plane, number = re.fullmatch(r"Which letter is in (\w+) slice (\d+)\?", record.task.question).groups()
            values = decode_volume(record.blobs[volume.digest])
            assert values.shape == volume.shape
            film = cut_slice(values, volume.spacing_mm, plane=plane, index=int(number)).values
            plain, spacing_mm = letter_slice.load_small_volume(split)
            rows, columns = np.nonzero(film != cut_slice(plain, spacing_mm, plane=plane, index=int(number)).values)
            plate = film[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert plate.shape == (21, 21)
            ink = plate[3:-3, 3:-3] == letter_slice._LETTER_LEVEL
            assert ink.shape == (15, 15)
            cells = ink.reshape(5, 3, 5, 3).all(axis=(1, 3))
            corners = tuple(bool(cells[row, column]) for row in (0, -1) for column in (0, -1))
            expected = {
                "L": (True, False, True, True),
                "J": (False, True, True, True),
                "T": (True, True, False, False),
                "X": (True, True, True, True),
            }
            assert corners == expected[record.reference.answer]


def test_calipers_measure_what_the_scanner_printed(records):
    for split in SPLITS:
        for frame in load_frames(split):
            if frame.text.caliper is None:
                continue
            (x0, y0), (x1, y1) = frame.text.caliper.points
            row_mm, column_mm = frame.spacing_mm
            measured_cm = math.hypot((x1 - x0) * column_mm, (y1 - y0) * row_mm) / 10
            assert measured_cm == pytest.approx(frame.text.caliper.printed_cm, rel=TOLERANCE * 0.6)
            for x, y in frame.text.caliper.points:
                assert frame.pixels[y - 8 : y + 9, x - 8 : x + 9].max() > 240
        assert {record.task.unit for record in records[split, "caliper"]} == {"mm", "cm"}


def test_the_printed_result_of_a_caliper_is_blank_where_it_is_asked_for():
    for split in SPLITS:
        source = EmbeddedTaskSource(split, families=("caliper",))
        frames = {frame.text.entry: frame for frame in load_frames(split)}
        for index in range(len(source)):
            record = source[index]
            (ref,) = record.task.images
            frame = frames[record.task.metadata["source"]]
            if ref.width == frame.pixels.shape[1]:
                x0, y0, x1, y1 = frame.text.caliper.result
                assert frame.pixels[y0:y1, x0:x1].any()
                assert not decode(record.blobs[ref.digest], ref.mime)[y0:y1, x0:x1].any()


def test_names_and_dates_on_frames_are_blank():
    num_blank = 0
    for split in SPLITS:
        for frame in load_frames(split):
            for x0, y0, x1, y1 in frame.text.blank:
                assert not frame.pixels[y0:y1, x0:x1].any()
                num_blank += 1
            for string in frame.text.strings:
                if string.box is not None:
                    x0, y0, x1, y1 = string.box
                    part = frame.pixels[y0:y1, x0:x1]
                    assert int(part.max()) - int(part.min()) > 60, string.text
    assert num_blank >= 5


def test_the_answer_of_a_header_task_is_in_the_header_of_its_image(records):
    for split in SPLITS:
        for record in records[split, "header"]:
            (ref,) = record.task.images
            header = record.task.headers[ref.digest]
            values = {f"{value:g}" if isinstance(value, float) else str(value) for value in header.values()}
            if "field of view" in record.task.question:
                side = "columns" if "wide" in record.task.question else "rows"
                spacing = header[f"pixel_spacing_{'column' if side == 'columns' else 'row'}_mm"]
                assert float(record.reference.answer) == pytest.approx(header[side] * spacing, abs=0.06)
            else:
                assert record.reference.answer in values


def test_grey_levels_tell_the_tissues_apart(records):
    """T1: white matter is bright, fluid dark, grey matter between, on average; a threshold outlines white matter."""
    for split in SPLITS:
        levels = {name: [] for name in TISSUES}
        for record in records[split, "tissue"]:
            x0, y0, x1, y1 = record.reference.regions[0].astype(int)
            levels[record.reference.answer].append(pixels_of(record)[y0 + 6 : y1 - 6, x0 + 6 : x1 - 6].mean())
        assert np.mean(levels["CSF"]) + 40 < np.mean(levels["GM"])
        assert np.mean(levels["GM"]) + 30 < np.mean(levels["WM"])
        overlaps = []
        for record in records[split, "tissue_mask"]:
            found, mask = pixels_of(record)[..., 0] > 193, record.reference.mask
            overlaps.append((found & mask).sum() / (found | mask).sum())
        assert np.mean(overlaps) > 0.75


def pixels_of(record):
    (ref,) = record.task.images
    return decode(record.blobs[ref.digest], ref.mime)


def test_what_is_not_prepared_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVISTA_CACHE", str(tmp_path))
    with pytest.raises(
        MissingPackageError, match=r"stardist 0\.9\.2 is not here: run `medvista data prepare embedded`"
    ):
        find_entry("nuclei-2d").locate()
    with pytest.raises(MissingPackageError, match=r"is not here: run `medvista data prepare embedded --debian`"):
        find_entry("head-ct-train").locate()


def test_the_manifest_and_the_table_of_packages_agree():
    packages = {package.name: package for package in PACKAGES + DEBIAN_PACKAGES}
    fetched = [entry for entry in load_manifest() if entry.is_fetched]
    assert {entry.package for entry in fetched} == set(packages)
    for entry in fetched:
        assert entry.version == packages[entry.package].version
        assert entry.sets == (embedded.SOURCE,)
        assert len(entry.sha256) == 64


def test_wrong_use_is_one_line():
    with pytest.raises(ConfigError, match=r"^data\.families: the embedded set has no 'smell'; known: vqa, segm"):
        EmbeddedTaskSource("train", families=("smell",))
    source = EmbeddedTaskSource("train", families=("zoom", "window"), max_tasks=10)
    assert len(source) == 10
    assert {source[index].task.family for index in range(4)} == {"zoom", "window"}
    with pytest.raises(IndexError, match="task 10 of 10"):
        source[10]
    with pytest.raises(DataError, match="no entry 'nowhere'"):
        find_entry("nowhere")
