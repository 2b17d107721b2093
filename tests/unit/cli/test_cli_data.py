"""`medvista data` in this process: what it prints, what it writes, and the one line when something is missing."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from miniatures import WRITERS, make_jpeg
from PIL import Image
from typer.testing import CliRunner

from medvista_ray.cli.app import app
from medvista_ray.cli.main import _run as run_as_script
from medvista_ray.data.contact_sheet import Tile, draw_contact_sheet


@pytest.fixture
def medvista(monkeypatch, tmp_path):
    """Return a function that runs `medvista data` and returns what it printed."""
    monkeypatch.setenv("MEDVISTA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words):
        result = CliRunner().invoke(app, ["data", *map(str, words)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


def error_of(capsys, *words):
    """Return the exit code and the one line of a command that fails."""
    code = run_as_script(["data", *map(str, words)])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return code, lines[0]


def test_list_names_every_data_set(medvista):
    listed = {each["name"]: each for each in json.loads(medvista("list", "--json"))}
    assert set(listed) == {
        *("demo", "pocket", "embedded"),
        *("vqa_rad", "slake", "path_vqa", "dicom_folder", "image_mask_folder"),
    }
    assert listed["pocket"]["is_ready"]
    assert not listed["slake"]["is_ready"]
    assert listed["slake"]["command"] == "medvista data prepare slake --from FOLDER"
    assert all(each["licence"] for each in listed.values())
    assert "slake" in medvista("list")


def test_show_says_the_terms_and_the_way(medvista, capsys):
    text = medvista("show", "vqa_rad")
    for told in ("CC0 1.0", "https://osf.io/89kps/", "VQA_RAD Dataset Public.json", "medvista data prepare vqa_rad"):
        assert told in text
    assert json.loads(medvista("show", "path_vqa", "--json"))["splits"] == ["published", "image"]
    assert error_of(capsys, "show", "slak") == (2, f"medvista: data show: 'slak' is none of {', '.join(NAMES)}")


NAMES = ("demo", "pocket", "embedded", "vqa_rad", "slake", "path_vqa", "dicom_folder", "image_mask_folder")


def test_prepare_then_stats_then_preview(medvista, tmp_path):
    source = WRITERS["slake"](tmp_path / "published")
    assert "48 training and 12 held-out tasks" in medvista("prepare", "slake", "--from", source)
    again = json.loads(medvista("prepare", "slake", "--from", source, "--json"))
    assert (again["num_train"], again["licence"]) == (48, "CC BY 4.0")
    found = json.loads(medvista("stats", "slake", "--json"))
    train, held_out = found["splits"]["train"], found["splits"]["held_out"]
    assert (train["tasks"], train["images"], held_out["tasks"], held_out["images"]) == (48, 8, 12, 2)
    assert train["families"]["slake_en_closed"] == {"choice": 8, "text": 8}
    assert train["languages"] == {"other": 24, "chinese": 24}
    assert train["sizes"] == {"24 x 16": 8}
    assert train["bytes"] == sum(len(make_jpeg(number)) for number in range(8))
    assert found["train_answers"]["slake_zh_open"] == {"distinct": 1, "common": {"腹部": 8}}
    assert (found["shared_images"], found["shared_sources"]) == (0, 0)
    text = medvista("stats", "slake", "--family", "slake_zh_open", "--limit", 3)
    assert "腹部" in text
    assert "train: 3 tasks" in text
    out = tmp_path / "pictures" / "contact.png"
    medvista("preview", "slake", "--out", out, "--count", 7)
    with Image.open(out) as image:
        assert image.format == "PNG"
        assert image.width > 4 * 180


def test_answers_of_the_held_out_half_are_not_counted(medvista, tmp_path):
    (tmp_path / "a.jpg").write_bytes(make_jpeg(0))
    (tmp_path / "b.jpg").write_bytes(make_jpeg(0))  # one picture under two names
    row = {"question": "Which?", "source": "s"}
    rows = [{"task_id": 1, "split": "train", "answer": "seen", "images": ["a.jpg"], **row}]
    rows += [{"task_id": 2, "split": "held_out", "answer": "hidden", "images": ["b.jpg"], **row}]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = medvista("stats", tmp_path, "--json")
    assert "seen" in text
    assert "hidden" not in text
    assert (json.loads(text)["shared_images"], json.loads(text)["shared_sources"]) == (1, 1)
    (tmp_path / "tasks.jsonl").write_text(json.dumps(rows[1]))  # a folder of one half
    assert json.loads(medvista("stats", tmp_path, "--json"))["splits"].keys() == {"held_out"}


def test_stats_of_a_set_made_from_packages(medvista):
    found = json.loads(medvista("stats", "pocket", "--family", "zoom", "--limit", 5, "--json"))
    assert found["splits"]["train"]["families"] == {"zoom": {"choice": 5}}
    assert found["shared_images"] == 0


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["prepare", "vqa_rad"], "--from FOLDER is missing"),
        (["prepare", "vqa_rad", "--from", "/nowhere"], "https://osf.io/89kps/, licence: CC0 1.0"),
        (["prepare", "demo", "--from", "."], "'demo' needs no preparation"),
        (["prepare", "coco", "--from", "."], "'coco' is none of vqa_rad"),
        (["prepare", "slake", "--from", ".", "--held-out-share", "1"], "--held-out-share must be between 0 and 1"),
        (["prepare", "slake", "--from", ".", "--split", "patient"], "slake is split by published or image"),
        (["prepare", "embedded", "--from", "."], "embedded has no option --from"),
        (["prepare", "embedded", "--debian", "--split", "image"], "embedded has no option --split"),
        (["prepare", "embedded", "--with-boxes"], "embedded has no option --with-boxes"),
        (["prepare", "vqa_rad", "--from", ".", "--with-boxes"], "vqa_rad has no option --with-boxes"),
        (["stats", "vqa_rad"], "medvista data prepare vqa_rad --from FOLDER"),
        (["stats", "no_such_folder"], "neither 'demo', 'pocket'"),
        (["preview", "pocket", "--out", "a.jpg"], "--out must end in .png"),
    ],
)
def test_what_is_missing_is_one_line_with_the_remedy(monkeypatch, tmp_path, capsys, words, what):
    monkeypatch.setenv("MEDVISTA_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code, line = error_of(capsys, *words)
    assert code == 2
    assert what in line


@pytest.mark.parametrize("caption", ["", "肝脏" * 200, "a\nb\x00c\ud800", "word " * 100, "x" * 500, "\u202eعربي"])
def test_any_caption_can_be_drawn(caption):
    pixels = np.full((20, 30, 3), 200, dtype=np.uint8)
    sheet = draw_contact_sheet([Tile(pixels=pixels, caption=caption)] * 5)
    with Image.open(io.BytesIO(sheet)) as image:
        drawn = np.array(image)
    assert (drawn[8:28, 8:38] == 200).all()
    assert (drawn[30:60] == drawn[0, 0]).all() == (not caption)


def test_the_same_seed_draws_the_same_tasks(medvista, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        medvista(
            "preview", "pocket", "--family", "zoom", "--count", 2, "--seed", seed, "--out", tmp_path / f"{name}.png"
        )
    first, second, third = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert first == second != third
