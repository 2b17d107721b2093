"""What the loaders make of files as published: five miniatures, and what is wrong in one line."""

from __future__ import annotations

import csv
import json
import os
import pickle
import sys
from collections import Counter

import numpy as np
import pytest
from miniatures import CASES, WRITERS, make_jpeg, write_dicom_folder, write_slake
from PIL import Image

from medvista_ray.data.folder import FolderTaskSource
from medvista_ray.data.prepare import PrepareSettings, prepare
from medvista_ray.data.public.catalog import PUBLIC_SETS, locate_prepared
from medvista_ray.data.public.json_array import read_json_array
from medvista_ray.data.sources import make_task_source
from medvista_ray.errors import DataError, MissingPackageError
from medvista_ray.rewards.grading import is_correct

SPLITS = ("train", "held_out")


def keys_of(rows, split):
    """Return the images and patients of a split."""
    chosen = [row for row in rows if row["split"] == split]
    return {name for row in chosen for name in row["images"]}, {row.get("patient") for row in chosen} - {None}


@pytest.mark.parametrize("name", WRITERS)
def test_every_data_set_becomes_a_folder_without_a_leak(made, tmp_path, name):
    prepared, records, rows = made(name)
    assert (prepared.num_train, prepared.num_held_out) == tuple(len(records[split]) for split in SPLITS)
    for what in range(2):
        assert not keys_of(rows, "train")[what] & keys_of(rows, "held_out")[what]
    digests = {ref.digest for split in SPLITS for record in records[split] for ref in record.task.images}
    stored = [path for path in (tmp_path / "out" / "images").rglob("*") if path.is_file()]
    assert len(digests) == len(stored) == prepared.num_images
    about = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (about["name"], about["licence"]) == (name, PUBLIC_SETS[name].licence)
    assert not list((tmp_path / "out").glob("*.sqlite*"))


@pytest.mark.parametrize("name", WRITERS)
def test_names_of_files_and_patients_stay_behind(made, tmp_path, name):
    made(name)
    (tmp_path / "published").rename(tmp_path / "elsewhere")
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").glob("*.json*")).lower()
    for told in (b"synpic", b"xmlab", b"doe^", b"patient0", b"scan1", b"medpix.nlm", b"source.jpg", b"00000-of"):
        assert told not in written


def test_vqa_rad(made):
    prepared, records, rows = made("vqa_rad")
    assert prepared.split_by == "patient"
    assert prepared.num_train + prepared.num_held_out == 4 * CASES
    closed, opened = records["train"][:2]
    assert (closed.task.family, closed.task.question) == (
        "vqa_rad_closed",
        "Is there evidence of an aortic aneurysm?",
    )
    assert [choice.text for choice in closed.task.choices] == ["yes", "no"]
    assert (opened.task.family, opened.reference.answer, opened.task.choices) == ("vqa_rad_open", "7", ())
    assert len({row["patient"] for row in rows}) == CASES  # both images of a case are one patient


def test_slake_in_both_languages(made):
    prepared, records, _ = made("slake")
    assert (prepared.num_train, prepared.num_held_out, prepared.num_left_out) == (48, 12, 12)
    by_question = {record.task.question: record for record in records["train"]}
    chinese = by_question["图片中包含肝脏吗?"]
    assert (chinese.task.family, [choice.choice_id for choice in chinese.task.choices]) == (
        "slake_zh_closed",
        ["包含", "不包含"],
    )
    assert is_correct("包含", task=chinese.task, reference=chinese.reference)
    assert not is_correct("不包含", task=chinese.task, reference=chinese.reference)
    opened = by_question["图像里包含的区域属于身体哪个部分?"]
    assert is_correct("腹部", task=opened.task, reference=opened.reference)
    assert not is_correct("胸部", task=opened.task, reference=opened.reference)
    bigger = by_question["Which is bigger in this image, lung or heart?"]
    assert (bigger.task.family, bigger.task.choices, bigger.reference.answer) == ("slake_en_closed", (), "Lung")
    assert {ref.modality for ref in chinese.task.images} == {None}  # some questions ask for it


def test_slake_with_boxes_and_the_other_held_out_half(made):
    prepared, records, _ = made("slake", with_boxes=True, held_out_half="validation")
    boxes = [record for record in records["train"] if record.task.family == "slake_boxes"]
    assert len(boxes) == 8  # liver and left lung of every second of eight images
    liver, lung = boxes[:2]
    assert liver.task.question.startswith("Where is the liver?")
    assert liver.reference.boxes.tolist() == [[1, 2, 11, 10]]
    assert lung.reference.boxes.tolist() == [[0, 0, 4, 4], [8, 8, 12, 12]]
    assert prepared.num_held_out == 2 * 6 + 2
    assert prepared.num_left_out == 2 * 6 + 2


def test_path_vqa(made):
    prepared, records, _ = made("path_vqa")
    assert (prepared.num_train, prepared.num_held_out, prepared.num_left_out) == (16, 4, 4)
    yes, where = records["train"][:2]
    assert (yes.task.family, where.task.family) == ("path_vqa_closed", "path_vqa_open")
    assert yes.task.images == where.task.images  # one blob for both
    assert yes.blobs[yes.task.images[0].digest] == make_jpeg(0)


def test_no_pickle_is_read(tmp_path):
    folder = tmp_path / "pvqa"
    folder.mkdir()

    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    (folder / "train_vqa.pkl").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="its pickles are not read"):
        prepare("path_vqa", folder, tmp_path / "out")
    assert not (tmp_path / "exploded").exists()


def test_dicom_folder_keeps_patients_apart_and_their_names_out(made, tmp_path):
    patients = [f"SMITH^JOHN{number % 6}" for number in range(CASES)]
    source = write_dicom_folder(tmp_path / "published", patients=patients)
    _, records, rows = made("dicom_folder", written=source)
    assert len({row["patient"] for row in rows}) == 6
    record = next(record for record in records["train"] if record.task.family == "header")
    (ref,) = record.task.images
    assert (ref.modality, record.task.answer_kind, record.task.unit) == ("CT", "number", "mm")
    assert ref.spacing_mm == pytest.approx((0.66, 0.66), abs=0.01)
    assert record.task.headers[ref.digest]["slice_thickness_mm"] == 5.0
    for path in (tmp_path / "out").rglob("*"):
        assert b"SMITH" not in (path.read_bytes() if path.is_file() else b"").upper()


def test_dicom_folder_names_the_line_that_is_wrong(tmp_path):
    source = write_dicom_folder(tmp_path / "published")
    path = source / "questions.csv"
    lines = list(csv.reader(path.read_text().splitlines()))

    def refused(line, column, value):
        changed = [list(row) for row in lines]
        changed[line][lines[0].index(column)] = value
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(changed)
        with pytest.raises(DataError) as caught:
            prepare("dicom_folder", source, tmp_path / "out", fresh=True)
        return str(caught.value)

    assert "line 3: 'no.dcm' is no file below" in refused(2, "file", "no.dcm")
    assert "line 3: '../x.dcm' is no file below" in refused(2, "file", "../x.dcm")
    assert "line 3: questions.csv is not a DICOM image" in refused(2, "file", "questions.csv")
    assert "line 2: the answer 'maybe' is none of the choices" in refused(1, "answer", "maybe")
    assert "line 3: could not convert" in refused(2, "tolerance", "a bit")
    assert "no column question" in refused(0, "question", "text")
    assert "unknown column 'choicess': did you mean choices" in refused(0, "choices", "choicess")


def test_the_split_column_is_the_split_where_it_is_filled(made, tmp_path):
    source = write_dicom_folder(tmp_path / "published")
    path = source / "questions.csv"
    first, *lines = path.read_text().splitlines()
    halves = ["held_out" if number in (6, 7) else "train" for number in range(len(lines))]
    path.write_text(
        "\n".join([f"{first},split", *(f"{line},{half}" for line, half in zip(lines, halves, strict=True))])
    )
    prepared, _, rows = made("dicom_folder", written=source)
    assert (prepared.split_by, [row["split"] for row in rows]) == ("published", halves)
    assert prepare("dicom_folder", source, tmp_path / "by_image", settings=PrepareSettings(split_by="image"))
    path.write_text(path.read_text().replace(",held_out", ",", 1))
    with pytest.raises(DataError, match=r"questions\.csv line 8: no published split here; use --split patient"):
        prepare("dicom_folder", source, tmp_path / "half filled")


def test_image_mask_folder(made, tmp_path):
    _, records, rows = made("image_mask_folder")
    tasks = [record for split in SPLITS for record in records[split]]
    assert Counter(record.task.question for record in tasks) == {
        "Outline the liver.": 12,
        "Outline the left kidney.": 6,
    }
    kidney = next(record for record in tasks if "kidney" in record.task.question)
    assert kidney.task.answer_kind == "mask"
    assert kidney.reference.mask.nonzero()[0].min() == 8
    assert kidney.reference.mask.sum() == 40
    assert len({row["patient"] for row in rows}) == 6


def test_a_mask_is_named_after_its_object_and_an_image_needs_one(tmp_path):
    source = WRITERS["image_mask_folder"](tmp_path / "published")
    (source / "labels.json").unlink()
    folder = source / "masks" / "patient0"
    (folder / "scan0.png").rename(folder / "scan0_right_lung.png")
    prepare("image_mask_folder", source, tmp_path / "out")
    lines = (tmp_path / "out" / "tasks.jsonl").read_text().splitlines()
    questions = Counter(json.loads(line)["question"] for line in lines)
    assert questions == {"Outline the right lung.": 1, "Outline the object.": 11}
    (folder / "scan0_right_lung.png").unlink()
    with pytest.raises(DataError, match=r"images/patient0/scan0\.jpg has no mask masks/patient0/scan0\.png"):
        prepare("image_mask_folder", source, tmp_path / "other")


def test_a_mask_belongs_to_the_longest_stem_that_fits_and_to_no_other(tmp_path):
    source = tmp_path / "published"
    for top in ("images", "masks"):
        (source / top).mkdir(parents=True)
    for number, stem in enumerate(("scan", "scan_1", "scan_10")):
        (source / "images" / f"{stem}.jpg").write_bytes(make_jpeg(number))
        mask = np.zeros((16, 24), dtype=np.uint8)
        mask[: number + 1] = 1
        Image.fromarray(mask).save(source / "masks" / f"{stem}_liver.png")
    prepare("image_mask_folder", source, tmp_path / "out")
    records = [record for split in SPLITS for record in records_of(tmp_path / "out", split)]
    areas = {record.blobs[record.task.images[0].digest]: record.reference.mask.sum() // 24 for record in records}
    assert areas == {make_jpeg(number): number + 1 for number in range(3)}
    (source / "images" / "scan_1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"images/scan_1\.jpg and scan_1\.png would share masks/scan_1\.png"):
        prepare("image_mask_folder", source, tmp_path / "other")
    (source / "images" / "scan_1.png").unlink()
    (source / "masks" / "scan_10.png").write_bytes(b"")
    (source / "masks" / "scan_10_object.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"masks/scan_10\.png and scan_10_object\.png are both that of the object"):
        prepare("image_mask_folder", source, tmp_path / "third")


def records_of(folder, split):
    tasks = FolderTaskSource(folder, split)
    return [tasks[index] for index in range(len(tasks))]


@pytest.mark.parametrize("name", PUBLIC_SETS)
def test_missing_files_name_the_data_set_its_page_its_licence_and_the_command(tmp_path, name):
    with pytest.raises(DataError) as caught:
        prepare(name, tmp_path / "nothing", tmp_path / "out")
    for told in (PUBLIC_SETS[name].page, PUBLIC_SETS[name].licence, f"medvista data prepare {name} --from FOLDER"):
        assert told in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_public_name_is_a_source_once_it_is_prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVISTA_CACHE", str(tmp_path / "cache"))

    def make_source():
        return make_task_source("slake", "train", families=("slake_zh_open",), weights=(), num_tasks=0, seed=0)

    with pytest.raises(
        DataError, match=r"is not prepared.*med-vqa\.com/slake.*CC BY 4\.0.*medvista data prepare slake"
    ):
        make_source()
    prepare("slake", write_slake(tmp_path / "published"), tmp_path / "cache" / "datasets" / "slake")
    assert len(make_source()) == 8
    assert locate_prepared("slake").is_dir()


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    WRITERS["path_vqa"](tmp_path / "published")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match=r"medvista-ray\[datasets\]"):
        prepare("path_vqa", tmp_path / "published", tmp_path / "out")


def test_an_image_that_cannot_be_decoded_names_its_item(tmp_path):
    source = write_slake(tmp_path / "published")
    (source / "imgs" / "xmlab0" / "source.jpg").write_bytes(b"\xff\xd8\xff no")
    with pytest.raises(DataError, match=r"train\.json item 0: not a readable image/jpeg"):
        prepare("slake", source, tmp_path / "out")
    (source / "train.json").write_text('[{"qid": 1}]')
    with pytest.raises(DataError, match=r"train\.json item 0: .*img_name"):
        prepare("slake", source, tmp_path / "out2")


@pytest.mark.parametrize("chunk", [1, 7, 1 << 16])
def test_a_json_array_is_read_object_by_object(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("medvista_ray.data.public.json_array._CHUNK_CHARS", chunk)
    path = tmp_path / "a.json"
    objects = [{"text": 'a ] } " \\ [ {', "n": [1, {"x": None}]}, {}, {"zh": "肝脏", "f": 1.5e3}]
    for text in (
        json.dumps(objects),
        json.dumps(objects, indent=2, ensure_ascii=False),
        "\ufeff" + json.dumps(objects),
    ):
        path.write_text(text, encoding="utf-8")
        assert list(read_json_array(path)) == list(enumerate(objects))
    path.write_text(" [ ] ")
    assert list(read_json_array(path)) == []
    for text, what in (
        ("{}", "not a JSON array"),
        ("", "not a JSON array"),
        ('[{"a": 1} {"b": 2}]', "item 1: expected a comma"),
        ('[{"a": 1},', "item 1: "),
        ('[{"a": ', "item 0: "),
        ("[[1]]", "item 0: expected an object, got list"),
        ("[" * 3000, "item 0: "),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=what):
            list(read_json_array(path))
