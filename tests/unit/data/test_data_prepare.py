"""From files to a folder: splits that do not leak, the same bytes every time, nothing lost in a kill, flat memory."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tracemalloc

import pytest
from miniatures import CASES, WRITERS, make_jpeg, make_slake_item, write_slake, write_vqa_rad
from PIL import Image, PngImagePlugin

from medvista_ray.data import prepare as preparing
from medvista_ray.data.folder import FolderTaskSource
from medvista_ray.data.prepare import PrepareSettings, prepare
from medvista_ray.errors import ConfigError, DataError

SPLITS = ("train", "held_out")


def test_the_published_split_of_vqa_rad_leaks_and_is_refused(made, tmp_path):
    source = write_vqa_rad(tmp_path / "leaky", leaks=True)
    with pytest.raises(DataError, match="share image") as caught:
        made("vqa_rad", written=source, split_by="published")
    for row in ("item 0 (train)", "item 1 (held_out)", "--on-leak drop"):
        assert row in str(caught.value)
    assert not (tmp_path / "out" / "tasks.jsonl").exists()
    with pytest.raises(DataError, match="no train question is left"):  # here every image is in both halves
        made("vqa_rad", written=source, split_by="published", on_leak="drop")


def test_dropping_a_leak_keeps_the_held_out_half_whole(made, tmp_path):
    source = write_slake(tmp_path / "leaky", same_image=True)
    with pytest.raises(DataError, match=r"train.json item 0 \(train\) and test.json item 6 \(held_out\) share image"):
        made("slake", written=source)
    prepared, _, _ = made("slake", written=source, on_leak="drop")
    assert (prepared.num_train, prepared.num_held_out, prepared.num_dropped) == (42, 12, 6)


def test_a_patient_in_both_published_halves_is_refused(made, tmp_path):
    source = write_vqa_rad(tmp_path / "published")
    path = source / "VQA_RAD Dataset Public.json"
    items = json.loads(path.read_text())
    items[0]["image_case_url"] = items[-1]["image_case_url"]
    path.write_text(json.dumps(items))
    with pytest.raises(DataError, match=r"item 0 \(train\) and .* item 44 \(held_out\) share patient p000001"):
        made("vqa_rad", written=source, split_by="published")


def test_the_same_files_give_the_same_bytes_and_a_seed_another_split(tmp_path):
    source = write_vqa_rad(tmp_path / "published")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepare("vqa_rad", source, tmp_path / name, settings=PrepareSettings(seed=seed))
    read = {name: (tmp_path / name / "tasks.jsonl").read_bytes() for name in "abc"}
    assert read["a"] == read["b"] != read["c"]


def test_a_finished_folder_is_left_alone_and_another_one_is_not_overwritten(tmp_path):
    source, out = write_vqa_rad(tmp_path / "published"), tmp_path / "out"
    first = prepare("vqa_rad", source, out)
    written = (out / "tasks.jsonl").stat().st_mtime_ns
    again = prepare("vqa_rad", source, out)
    assert (first.was_finished, again) == (False, dataclasses.replace(first, was_finished=True))
    assert (out / "tasks.jsonl").stat().st_mtime_ns == written
    with pytest.raises(ConfigError, match="holds another data set"):
        prepare("vqa_rad", source, out, settings=PrepareSettings(seed=1))
    assert prepare("vqa_rad", source, out, settings=PrepareSettings(seed=1), fresh=True).num_train != 0
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "tasks.jsonl").write_text("{}")
    for fresh in (False, True):
        with pytest.raises(ConfigError):
            prepare("vqa_rad", source, mine, fresh=fresh)
    assert (mine / "tasks.jsonl").read_text() == "{}"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("image_mask_folder", "masks/patient0/scan0.png"),
        ("image_mask_folder", "images/patient0/scan0.jpg"),
        ("dicom_folder", "doe_patient0_0.dcm"),
    ],
)
def test_a_changed_file_of_one_s_own_is_not_reported_done(tmp_path, name, file):
    source, out = WRITERS[name](tmp_path / "published"), tmp_path / "out"
    prepare(name, source, out)
    assert prepare(name, source, out).was_finished
    os.utime(source / file, ns=(1, 1))
    with pytest.raises(ConfigError, match="made in another way"):
        prepare(name, source, out)
    assert not prepare(name, source, out, fresh=True).was_finished


def test_texts_in_images_and_masks_stay_behind_and_do_not_hide_a_leak(tmp_path):
    source, out = write_slake(tmp_path / "published", same_image=True), tmp_path / "out"
    copy = source / "imgs" / f"xmlab{CASES - 1}" / "source.jpg"
    copy.write_bytes(with_comment(copy))
    with pytest.raises(DataError, match="share image"):
        prepare("slake", source, out)
    source = WRITERS["image_mask_folder"](tmp_path / "own")
    for path in source.rglob("scan*.jpg"):
        path.write_bytes(with_comment(path))
    for path in source.rglob("scan*.png"):
        texts = PngImagePlugin.PngInfo()
        texts.add_text("Patient", "SMITH^JOHN")
        Image.open(path).save(path, pnginfo=texts)
    prepare("image_mask_folder", source, tmp_path / "masks")
    for path in (tmp_path / "masks").rglob("*"):
        assert path.is_dir() or b"SMITH" not in path.read_bytes()


def test_a_box_beyond_the_image_is_cut_and_what_marks_nothing_is_counted(made, tmp_path):
    source = write_slake(tmp_path / "published")
    boxes = [{"Liver": [-1, 2, 10, 99]}, {"Left Lung": [3, 3, 0, 4]}, {"Mass": [0, 0, 4, 4]}, {"Mass": [30, 0, 4, 4]}]
    (source / "imgs" / "xmlab0" / "detection.json").write_text(json.dumps(boxes))
    (source / "validate.json").rename(source / "validation.json")  # as the authors' repository has it
    prepared, records, _ = made("slake", written=source, with_boxes=True)
    assert (prepared.num_clipped, prepared.num_empty) == (1, 2)
    found = {record.task.question: record.reference.boxes.tolist() for record in reversed(records["train"])}
    assert found["Where is the liver? Mark every part of it with a box."] == [[0, 2, 9, 16]]
    assert found["Where is the mass? Mark every part of it with a box."] == [[0, 0, 4, 4]]


@pytest.mark.parametrize("with_labels", [False, True])
def test_empty_masks_are_left_out_and_counted(made, tmp_path, with_labels):
    source = WRITERS["image_mask_folder"](tmp_path / "published")
    if not with_labels:
        (source / "labels.json").unlink()
    Image.new("L", (24, 16)).save(source / "masks" / "patient0" / "scan0.png")
    prepared, records, _ = made("image_mask_folder", written=source)
    assert prepared.num_empty == 1
    assert sum(map(len, records.values())) == 11 + 6 * with_labels
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["num_empty"] == 1


def test_images_of_another_data_set_go_and_files_of_one_s_own_stay(tmp_path):
    out = tmp_path / "out"
    prepare("vqa_rad", write_vqa_rad(tmp_path / "first"), out)
    mine = out / "images" / "00" / "mine.png"
    mine.parent.mkdir(exist_ok=True)
    mine.write_bytes(b"mine")
    prepared = prepare("image_mask_folder", WRITERS["image_mask_folder"](tmp_path / "second"), out, fresh=True)
    stored = {path.name for path in (out / "images").rglob("*.*")} - {"mine.png"}
    assert len(stored) == prepared.num_images == CASES
    assert mine.read_bytes() == b"mine"
    rows = [json.loads(line) for line in (out / "tasks.jsonl").read_text().splitlines()]
    assert {name for row in rows for name in row["images"]} == {f"images/{name[:2]}/{name}" for name in stored}


def with_comment(path):
    data = path.read_bytes()
    return data[:2] + b"\xff\xfe\x00\x0cSMITH^JOHN" + data[2:]


_CHILD = """
import sys, time
from pathlib import Path
from medvista_ray.data.prepare import prepare
def report(done, total):
    print(done, flush=True)
    time.sleep(0.05 if len(sys.argv) > 3 else 0)
print(prepare("slake", Path(sys.argv[1]), Path(sys.argv[2]), report=report).resumed_from)
"""


def write_large_slake(folder, *, num_rows, num_images=40):
    """Write SLAKE with many questions about few images."""
    write_slake(folder)
    for image in range(CASES, CASES + num_images):
        place = folder / "imgs" / f"xmlab{image}"
        place.mkdir()
        (place / "source.jpg").write_bytes(make_jpeg(image))
    items = (
        make_slake_item(10_000 + row, CASES + row % num_images, "What organ?", "Liver", is_closed=False, lang="en")
        for row in range(num_rows)
    )
    with (folder / "train.json").open("w") as file:
        file.write("[")
        for row, item in enumerate(items):
            file.write((",\n" if row else "") + json.dumps(item))
        file.write("]")
    return folder


def test_a_killed_preparation_goes_on_and_ends_with_the_same_bytes(tmp_path):
    source = write_large_slake(tmp_path / "published", num_rows=1200)
    prepare("slake", source, tmp_path / "whole")
    command = [sys.executable, "-c", _CHILD, str(source), str(tmp_path / "out")]
    child = subprocess.Popen([*command, "slowly"], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    while int(child.stdout.readline()) < 400:
        pass
    child.send_signal(signal.SIGKILL)
    assert child.wait(timeout=30) == -signal.SIGKILL
    child.stdout.close()
    assert not (tmp_path / "out" / "tasks.jsonl").exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    reported = [int(word) for word in done.stdout.split()]
    assert 400 <= reported[0] < 1200  # begins where the other one was killed
    assert reported[-1] == reported[0]
    for name in ("tasks.jsonl", "dataset.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_preparation_does_not_go_on_with_other_files(tmp_path, monkeypatch):
    source, out = write_slake(tmp_path / "published"), tmp_path / "out"
    (source / "imgs" / "xmlab5" / "source.jpg").rename(tmp_path / "away.jpg")
    monkeypatch.setattr(preparing, "COMMIT_ROWS", 1)
    with pytest.raises(DataError, match=r"train\.json item 30: 'xmlab5/source\.jpg' is no file below"):
        prepare("slake", source, out)
    items = json.loads((source / "train.json").read_text())
    (source / "train.json").write_text(json.dumps(items[1:]))
    (tmp_path / "away.jpg").rename(source / "imgs" / "xmlab5" / "source.jpg")
    with pytest.raises(ConfigError, match="the beginning of another preparation"):
        prepare("slake", source, out)
    assert prepare("slake", source, out, fresh=True).num_train == 47


def peak_mib(code, *arguments):
    """Run code in a process of its own; return what it prints last: its peak memory in MiB."""
    code += '\nprint(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])'
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=900, check=True
    )
    return int(done.stdout.split()[-1]) / 1024


_PREPARE = """
import sys
from pathlib import Path
from medvista_ray.data.prepare import prepare
prepare("slake", Path(sys.argv[1]), Path(sys.argv[2]))
"""
_OPEN = """
import sys
from pathlib import Path
from medvista_ray.data.folder import FolderTaskSource
tasks = FolderTaskSource(Path(sys.argv[1]), "train")
assert tasks[len(tasks) - 1].task.question
"""


@pytest.mark.long
def test_memory_does_not_grow_with_the_rows(tmp_path):
    peaks = {}
    for num_rows in (2_000, 200_000):
        source = write_large_slake(tmp_path / f"published{num_rows}", num_rows=num_rows)
        out = tmp_path / f"out{num_rows}"
        peaks[num_rows] = peak_mib(_PREPARE, source, out), peak_mib(_OPEN, out)
    small, large = peaks[2_000], peaks[200_000]
    assert large[0] - small[0] < 8  # MiB: what the database keeps in memory fills up
    assert large[1] - small[1] < 30  # MiB for 198,000 rows more; parsed, they take 300


def test_only_the_place_of_a_row_is_kept(tmp_path):
    (tmp_path / "a.jpg").write_bytes(make_jpeg(0))
    row = {"split": "train", "question": "What organ is this?" * 10, "images": ["a.jpg"], "answer": "liver"}
    lines = (json.dumps({"task_id": f"long-name-{index}", "patient": f"p{index}", **row}) for index in range(10_000))
    (tmp_path / "tasks.jsonl").write_text("\n".join(lines))
    tracemalloc.start()
    tasks = FolderTaskSource(tmp_path, "train")
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 40 * len(tasks)
    assert tasks[9_999].task.task_id == "long-name-9999"
