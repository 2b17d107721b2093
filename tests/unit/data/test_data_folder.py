"""A user's own folder: what is right becomes tasks, what is wrong becomes one line that says where."""

from __future__ import annotations

import json
import shutil

import jsonschema
import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from pydicom.data import get_testdata_file

from medvista_ray.data.folder import FolderTaskSource
from medvista_ray.data.rows import make_schema
from medvista_ray.data.sources import make_task_source
from medvista_ray.errors import DataError
from medvista_ray.images.codec import decode, encode_npy, encode_png
from medvista_ray.images.windowing import PRESETS
from medvista_ray.rewards.grading import is_correct
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
    (folder / "c.png").write_bytes(encode_png(PIXELS))
    closed = {**ROW, "task_id": "t3", "images": ["c.png"], "choices": ["L", "T", 3], "answer": 3, "split": "held_out"}
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


def test_the_text_in_an_image_stays_in_its_folder(folder):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Diagnosis", "glioma of SMITH^JOHN")
    Image.fromarray(PIXELS).save(folder / "a.png", pnginfo=texts)
    record = FolderTaskSource(write(folder, ROW), "train")[0]
    (ref,) = record.task.images
    assert b"SMITH" not in record.blobs[ref.digest]
    assert np.array_equal(decode(record.blobs[ref.digest], ref.mime), PIXELS)


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
    assert us.spacing_mm == pytest.approx((0.51, 0.51), abs=0.01)  # of its ultrasound region
    assert record.task.headers[ct.digest]["modality"] == "CT"
    assert set(record.task.headers) == {image.digest for image in record.task.images}


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


def test_each_answer_kind_reaches_the_task_and_its_label_the_reference_alone(folder):
    mask = np.zeros((6, 9), dtype=np.uint8)
    mask[2:4, 3:7] = 2
    mask[5, 8] = 1
    Image.fromarray(mask).save(folder / "m.png")
    rows = [
        {**ROW, "task_id": "number", "answer": "12.5 cm", "absolute_tolerance": 0.5},
        {**ROW, "task_id": "count", "answer": 3, "answer_kind": "number", "unit": "nuclei"},
        {**ROW, "task_id": "converted", "answer": "5 cm", "absolute_tolerance": 0.5, "unit": "mm"},
        {**ROW, "task_id": "text", "aliases": ["left", "links"], "regions": [[0, 0, 2, 3]]},
        {**ROW, "task_id": "boxes", "answer": None, "boxes": [[1, 2, 9, 6], [0, 0, 1, 1]]},
        {**ROW, "task_id": "mask", "answer": None, "mask": "m.png", "mask_label": 2},
        {**ROW, "task_id": "any value", "answer": None, "mask": "m.png"},
        {**ROW, "task_id": "list", "answer": None, "items": ["liver", 3]},
        {**ROW, "task_id": "choice", "choices": ["L", "T"]},
    ]
    source = FolderTaskSource(write(folder, *rows), "train")
    records = {record.task.task_id: record for record in (source[index] for index in range(len(source)))}
    kinds = ["number", "number", "number", "text", "boxes", "mask", "mask", "list", "choice"]
    assert [record.task.answer_kind for record in records.values()] == kinds
    assert (records["number"].task.unit, records["count"].task.unit) == ("cm", "nuclei")
    converted = records["converted"]
    assert is_correct("50 mm", task=converted.task, reference=converted.reference)
    assert not is_correct("5 mm", task=converted.task, reference=converted.reference)
    assert records["number"].reference.absolute_tolerance == 0.5
    assert records["text"].reference.aliases == ("left", "links")
    assert records["text"].reference.regions.tolist() == [[0, 0, 2, 3]]
    assert records["boxes"].reference.boxes.tolist() == [[1, 2, 9, 6], [0, 0, 1, 1]]
    assert records["list"].reference.items == ("liver", "3")
    assert np.array_equal(records["mask"].reference.mask, mask == 2)
    assert np.array_equal(records["any value"].reference.mask, mask > 0)
    assert not set(records["mask"].blobs) - set(records["mask"].task.digests)  # a mask is no blob
    for label in ("links", "12.5", "m.png", "liver"):
        assert all(label not in repr(record.task) for record in records.values())


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"answer_kind": "boxes", "answer": None}, "answer_kind boxes needs `boxes`"),
        ({"answer_kind": "list", "answer": None}, "answer_kind list needs `items`"),
        ({"answer": None, "items": ["liver", "lung, left"]}, "'lung, left' holds a comma, semicolon or line end"),
        ({"answer": None, "items": ["肝、肺"]}, "holds a comma"),
        ({"answer": None, "items": ["liver", "--"]}, "of the item '--' nothing is left"),
        ({"answer": "1e999", "tolerance": 0.1}, "'1e999' is not a finite number"),
        ({"answer": "3 kg", "tolerance": 0.1, "unit": "cm"}, "not in the unit 'cm'"),
        ({"answer_kind": "mask", "answer": None}, "answer_kind mask needs `mask`"),
        ({"answer_kind": "choice"}, "needs `choices`"),
        ({"answer_kind": "number", "answer": "many"}, "'many' is no number, but its answer_kind is number"),
        ({"answer_kind": "polygon"}, r"\$\.answer_kind"),
        ({"answer": "  "}, "a text question needs `answer`"),
        ({"answer_kind": "text", "choices": ["L"]}, "choices belong to answer_kind choice"),
        ({"answer_kind": "text", "tolerance": 0.1}, "a tolerance belongs to answer_kind number"),
        ({"absolute_tolerance": -1}, "absolute_tolerance must be >= 0"),
        ({"boxes": [[3, 0, 3, 4]]}, "x0 < x1 and y0 < y1"),
        ({"regions": [[-1, 0, 3, 4]]}, "x0 < x1 and y0 < y1"),
        ({"regions": [[0, 0, 3]]}, r"\$\.regions"),
        ({"mask_label": 1}, "mask_label without `mask`"),
        ({"images": []}, "a task needs `images` or `volumes`"),
        ({"headers": [{}, {}]}, "headers has 2 objects for 1 images"),
        ({"headers": [{"patient_name": "x"}]}, "'patient_name' is not on the list"),
        ({"bboxes": []}, "did you mean boxes"),
    ],
)
def test_a_row_that_nobody_can_answer_is_refused(folder, changes, what):
    write(folder, {**ROW, **changes})
    with pytest.raises(DataError, match=what) as caught:
        FolderTaskSource(folder, "train")
    assert "tasks.jsonl line 1: " in str(caught.value)


def save_mask(folder, array):
    Image.fromarray(array).save(folder / "m.png")


@pytest.mark.parametrize(
    ("array", "changes", "what"),
    [
        (np.ones((6, 8), np.uint8), {}, "8 x 6 pixels, but its image has 9 x 6"),
        (np.zeros((6, 9), np.uint8), {}, "no pixel is marked"),
        (np.ones((6, 9), np.uint8), {"mask_label": 7}, "no pixel has the value 7"),
        (np.ones((6, 9, 4), np.uint8), {}, "a mask is a PNG of one channel, or of three, got mode RGBA"),
    ],
)
def test_a_mask_that_does_not_fit_is_one_line(folder, array, changes, what):
    save_mask(folder, array)
    write(folder, {**ROW, "answer": None, "mask": "m.png", **changes})
    with pytest.raises(DataError, match=rf"line 1: mask 'm\.png': {what}"):
        _ = FolderTaskSource(folder, "train")[0]


@pytest.mark.parametrize("kind", ["bits", "16-bit", "palette", "colour"])
def test_masks_of_every_kind_are_read(folder, kind):
    wanted = np.zeros((6, 9), dtype=bool)
    wanted[1:3, 2:5] = True
    if kind == "bits":
        Image.fromarray(wanted).save(folder / "m.png")
    elif kind == "16-bit":
        Image.fromarray((wanted * 40_000).astype(np.uint16)).save(folder / "m.png")
    elif kind == "palette":
        image = Image.fromarray(wanted.astype(np.uint8)).convert("P")
        image.putpalette([0, 0, 0] * 256)  # all entries black: the index counts, not its colour
        image.save(folder / "m.png")
    else:
        Image.fromarray(np.where(wanted[..., None], np.array([0, 0, 200], np.uint8), np.uint8(0))).save(
            folder / "m.png"
        )
    write(folder, {**ROW, "answer": None, "mask": "m.png"})
    assert np.array_equal(FolderTaskSource(folder, "train")[0].reference.mask, wanted)


def test_boxes_beyond_the_image_are_refused(folder):
    write(folder, {**ROW, "answer": None, "boxes": [[0, 0, 10, 6]]})
    with pytest.raises(DataError, match=r"line 1: image 'a\.png': boxes: \[0\.0, .* leaves the image of 9 x 6"):
        _ = FolderTaskSource(folder, "train")[0]


def test_a_missing_mask_or_volume_is_found_before_a_run(folder):
    for key, name in (("mask", "no.png"), ("volumes", ["no.nii"])):
        write(folder, {**ROW, key: name})
        with pytest.raises(DataError, match=rf"line 1: {key.rstrip('s')} 'no\.\w+' is no file below the folder"):
            FolderTaskSource(folder, "train")


def test_a_patient_in_both_splits_names_both_lines(folder):
    rows = [{**ROW, "task_id": index, "patient": f"p{index % 3}"} for index in range(4)]
    write(folder, *rows[:3], {**rows[3], "split": "held_out"})
    with pytest.raises(DataError, match=r"line 4: the patient of this held_out line is in train on line 1"):
        FolderTaskSource(folder, "train")
    (folder / "c.png").write_bytes(encode_png(PIXELS))
    write(folder, *rows[:3], {**rows[3], "split": "held_out", "patient": "p9", "images": ["c.png"]})
    record = FolderTaskSource(folder, "held_out")[0]
    assert "p9" not in repr(record.task)


@pytest.mark.parametrize("name", ["a.png", "./a.png", "deep/../a.png"])
def test_an_image_in_both_splits_names_both_lines(folder, name):
    rows = [{**ROW, "task_id": index} for index in range(3)]
    write(folder, *rows, {**ROW, "task_id": 3, "split": "held_out", "images": ["deep/b.npy", name]})
    with pytest.raises(
        DataError, match=r"line 4: an image or volume of this held_out line is in train on line 1: split"
    ):
        FolderTaskSource(folder, "train")


def test_a_byte_order_mark_before_the_first_line_is_not_read(folder):
    write(folder, ROW, {**ROW, "task_id": "t2"})
    path = folder / "tasks.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    tasks = FolderTaskSource(folder, "train")
    assert [tasks[index].task.task_id for index in range(2)] == ["t1", "t2"]
    assert FolderTaskSource.find_splits(folder) == {"train"}


def test_chinese_text_survives_to_the_grader(folder):
    write(folder, {**ROW, "question": "图中包含肝脏吗?", "choices": ["包含", "不包含"], "answer": "不包含"})
    record = FolderTaskSource(folder, "train")[0]
    assert record.task.question == "图中包含肝脏吗?"
    assert is_correct("不包含", task=record.task, reference=record.reference)
    assert not is_correct("包含", task=record.task, reference=record.reference)


def test_the_schema_in_the_docs_is_up_to_date_and_takes_what_the_reader_takes(folder, checkout):
    schema = json.loads((checkout / "docs" / "tasks.schema.json").read_text())
    assert schema == make_schema(), "run python docs/make_schema.py"
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid({**ROW, "boxes": [[0, 0, 1, 2]], "mask": None, "spacing_mm": [1, 2.5], "mine": {}})
    refused = [row for name, (row, _) in BAD_ROWS.items() if name not in ("not json", "a list", "no answer")]
    assert sum(not validator.is_valid(row) for row in refused) >= 6  # all but those that compare two keys
    assert not validator.is_valid({**ROW, "task_id": None})
