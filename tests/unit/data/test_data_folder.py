"""A user's own folder: what is right becomes tasks, what is wrong becomes one line that says where."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from pydicom.data import get_testdata_file

from medvista_ray.data.folder import FolderTaskSource
from medvista_ray.data.sources import make_task_source
from medvista_ray.errors import DataError
from medvista_ray.images.codec import decode, encode_npy, encode_png
from medvista_ray.images.windowing import PRESETS
from medvista_ray.types.messages import NPY_MIME, PNG_MIME

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
VALUES = np.arange(20, dtype=np.int16).reshape(4, 5)
ROW = {"task_id": "t1", "split": "train", "question": "Which letter?", "images": ["a.png"], "answer": "L"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.png").write_bytes(encode_png(PIXELS))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.npy").write_bytes(encode_npy(VALUES))
    return tmp_path


def write(folder, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "tasks.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_good_rows_become_tasks(folder):
    other = {
        **ROW, "task_id": 2, "family": "size", "images": ["deep/b.npy", "a.png"], "answer": 12.5, "tolerance": 0.1,
        "spacing_mm": [0.5, 0.25], "source": "patient-7", "patient_name": "not read",
    }  # fmt: skip
    closed = {**ROW, "task_id": "t3", "choices": ["L", "T", 3], "answer": 3, "split": "held_out"}
    write(folder, ROW, "", other, closed)
    tasks = FolderTaskSource(folder, "train")
    assert len(tasks) == 2
    first, second = tasks[0], tasks[1]
    assert (first.task.task_id, first.task.family, first.task.question) == ("t1", "vqa", "Which letter?")
    assert (first.task.choices, first.reference.answer, first.reference.tolerance) == ((), "L", None)
    (ref,) = first.task.images
    assert (ref.mime, ref.width, ref.height, ref.spacing_mm) == (PNG_MIME, 9, 6, None)
    assert np.array_equal(decode(first.blobs[ref.digest], ref.mime), PIXELS)
    assert (second.task.task_id, second.task.family) == ("2", "size")
    assert [image.mime for image in second.task.images] == [NPY_MIME, PNG_MIME]
    assert second.task.images[0].spacing_mm == (0.5, 0.25)
    assert (second.reference.answer, second.reference.tolerance) == ("12.5", 0.1)
    assert second.task.metadata == {"source": "patient-7"}
    assert "not read" not in repr(second)
    held_out = FolderTaskSource(folder, "held_out")[0]
    assert [choice.choice_id for choice in held_out.task.choices] == ["L", "T", "3"]
    assert held_out.reference.answer == "3"
    assert len(FolderTaskSource(folder, "train", families=("size",))) == 1


def test_the_name_of_a_file_stays_in_its_folder(folder):
    """A file name may name a patient."""
    (folder / "smith_john.png").write_bytes(encode_png(PIXELS))
    write(folder, {**ROW, "images": ["smith_john.png"]})
    record = FolderTaskSource(folder, "train")[0]
    assert "smith" not in repr(record)
    assert record.task.metadata["source"]


def test_line_separators_inside_a_text_do_not_end_a_line(folder):
    write(folder, {**ROW, "question": "one\u2028two\x85three"})
    assert FolderTaskSource(folder, "train")[0].task.question == "one\u2028two\x85three"


def test_dicom_files_come_with_spacing_and_a_readable_scale(folder):
    for name in ("CT_small.dcm", "MR_small.dcm", "examples_ybr_color.dcm"):
        shutil.copyfile(get_testdata_file(name), folder / name)
    names = ["CT_small.dcm", "MR_small.dcm", "examples_ybr_color.dcm"]
    write(folder, {**ROW, "images": names})
    record = FolderTaskSource(folder, "train")[0]
    ct, mr, us = record.task.images
    assert [image.modality for image in record.task.images] == ["CT", "MR", "US"]
    assert [image.mime for image in record.task.images] == [NPY_MIME, NPY_MIME, PNG_MIME]
    assert ct.spacing_mm is not None
    assert decode(record.blobs[ct.digest], NPY_MIME).min() < -800  # HU: air
    center, width = PRESETS["soft_tissue"]
    low, high = np.percentile(decode(record.blobs[mr.digest], NPY_MIME), [1, 99.5])
    assert (low, high) == pytest.approx((center - width / 2, center + width / 2), abs=width / 50)
    assert us.spacing_mm is None


BAD_ROWS = {
    "not json": ("{", "truncated"),
    "a list": ("[1]", "Expected `object`"),
    "no answer": ({key: value for key, value in ROW.items() if key != "answer"}, "`answer`"),
    "another split": ({**ROW, "split": "test"}, r"\$\.split"),
    "images is a text": ({**ROW, "images": "a.png"}, r"\$\.images"),
    "null choices": ({**ROW, "choices": None}, r"\$\.choices"),
    "a tolerance in words": ({**ROW, "tolerance": "small"}, r"\$\.tolerance"),
    "a negative tolerance": ({**ROW, "tolerance": -1}, "tolerance must be >= 0"),
    "half a spacing": ({**ROW, "spacing_mm": [1.0]}, r"\$\.spacing_mm"),
    "no spacing": ({**ROW, "spacing_mm": [0, 1]}, "spacing_mm must be > 0"),
    "an answer that is no choice": ({**ROW, "choices": ["T", "X"]}, "'L' is none of the choices"),
    "choices that are one": ({**ROW, "choices": ["L", "l "]}, "the same to the grader"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_one_line_with_its_number(folder, name):
    row, what = BAD_ROWS[name]
    write(folder, ROW, row)
    with pytest.raises(DataError, match=what) as caught:
        FolderTaskSource(folder, "train")
    assert "tasks.jsonl line 2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_task_id_stands_once(folder):
    write(folder, ROW, {**ROW, "split": "held_out"})
    with pytest.raises(DataError, match=r"line 2: task_id 't1' stands on line 1 already"):
        FolderTaskSource(folder, "train")


def test_bytes_that_are_no_text(folder):
    (folder / "tasks.jsonl").write_bytes(b'{"task_id": "\xff"}')
    with pytest.raises(DataError, match="line 1"):
        FolderTaskSource(folder, "train")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("missing.png", "no file below the folder"),
        ("../outside.png", "no file below the folder"),
        ("/etc/hostname", "no file below the folder"),
        ("deep", "no file below the folder"),
        ("link.png", "no file below the folder"),
        ("nul\x00.png", "null byte"),
        ("text.png", "not a readable image/png"),
        ("text.npy", "not an npy array"),
        ("text.txt", "not a DICOM image"),
        ("text.tiff", "not a DICOM image"),
    ],
)
def test_an_image_that_is_none_is_one_line(folder, name, what):
    (folder.parent / "outside.png").write_bytes(encode_png(PIXELS))
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    for kind in ("png", "npy", "txt", "tiff"):
        (folder / f"text.{kind}").write_text("text")
    write(folder, {**ROW, "images": [name]})
    with pytest.raises(DataError, match=what) as caught:
        _ = FolderTaskSource(folder, "train")[0]
    assert f"tasks.jsonl line 1: image {name!r}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_tasks(folder):
    with pytest.raises(DataError, match=r"has no tasks\.jsonl"):
        make_task_source(str(folder), "train", families=(), weights=(), num_tasks=1, seed=0)
    write(folder, ROW)
    with pytest.raises(DataError, match="no task with split 'held_out'"):
        make_task_source(str(folder), "held_out", families=(), weights=(), num_tasks=1, seed=0)
    assert len(make_task_source(str(folder), "train", families=(), weights=(), num_tasks=1, seed=0)) == 1


def test_families_and_a_number_of_tasks_choose_rows(folder):
    rows = [{**ROW, "task_id": index, "family": family} for index, family in enumerate(["a", "b", "a", "a"])]
    write(folder, *rows)

    def ids(**chosen):
        tasks = FolderTaskSource(folder, "train", **chosen)
        return [tasks[index].task.task_id for index in range(len(tasks))]

    assert ids() == ["0", "1", "2", "3"]
    assert ids(families=("a",)) == ["0", "2", "3"]
    assert ids(families=("a",), max_tasks=2) == ["0", "2"]
    with pytest.raises(DataError, match=r"no task with split 'train' and a family of c \(data\.families\)"):
        ids(families=("c",))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"answer": "12,5 mm", "tolerance": 0.05}, "is no number"),
        ({"answer": "yes", "choices": ["yes", "no"], "tolerance": 0.05}, "not both"),
        ({"answer": "3", "tolerance": -0.1}, "must be >= 0"),
        ({"tolrance": 0.1}, "unknown key 'tolrance': did you mean tolerance"),
        ({"split": "test"}, "split is train or held_out"),
    ],
)
def test_a_number_that_no_reply_can_match_is_refused(folder, changes, what):
    write(folder, {**{key: value for key, value in ROW.items() if key != "choices"}, **changes})
    with pytest.raises(DataError, match=what):
        FolderTaskSource(folder, "train")
