"""`medvista tools`: what a person or a script gets on a shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom.data
import pytest
from PIL import Image

NAMES = (
    *("zoom", "flip_rotate", "window_level", "enhance", "get_slice", "measure", "segment", "ground", "read_text"),
    *("dicom_info", "calculate"),
)


def medvista(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "medvista_ray", "tools", *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.full((100, 120), 30, np.uint8)
    pixels[30:60, 40:80] = 200
    path = tmp_path / "x.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("arguments", [("--json",), ("list", "--json")])
def test_the_list_has_every_tool_with_its_schema(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = medvista(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    described = json.loads(done.stdout)
    assert set(described) == {*NAMES, "segment_classical"}
    assert {name: entry["variant_of"] for name, entry in described.items() if "variant_of" in entry} == {
        "segment_classical": "segment"
    }
    assert all(described[name]["parameters"]["type"] == "object" for name in NAMES)
    assert described["segment"]["cost"] == "service"


def test_the_list_can_be_read(tmp_path: Path) -> None:
    done = medvista(cwd=tmp_path)
    assert done.returncode == 0
    assert all(f"{name} (" in done.stdout for name in NAMES)
    assert "segment_classical (pooled): a variant of segment" in done.stdout
    assert "medvista tools try" in done.stdout


def test_try_writes_the_image_and_prints_the_text(picture: Path, tmp_path: Path) -> None:
    box = json.dumps({"bbox": [300, 250, 700, 650]})
    out = tmp_path / "new" / "mask.png"
    without = str(tmp_path / "empty")  # where nothing is prepared
    done = medvista(
        *("try", "segment", "--image", picture.name, "--args", box, "--out", str(out)),
        cwd=tmp_path,
        MEDVISTA_CACHE=without,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("fallback: region growing")
    assert f"wrote {out}" in done.stdout
    green = (np.asarray(Image.open(out)) == (0, 255, 0)).all(axis=2)
    assert green[30:60, 40:80].sum() == green.sum() > 100
    plain = medvista("try", "zoom", "--image", picture.name, "--args", box, "--json", cwd=tmp_path)
    assert json.loads(plain.stdout) == {"text": "", "images": ["result.png"]}
    assert (tmp_path / "result.png").is_file()


def test_try_reads_dicom_npy_and_nifti(tmp_path: Path) -> None:
    import nibabel

    np.save(tmp_path / "v.npy", np.random.default_rng(0).integers(-500, 500, (40, 50)).astype(np.int16))
    done = medvista("try", "window_level", "--image", "v.npy", "--args", '{"preset": "bone"}', cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    volume = nibabel.Nifti1Image(np.zeros((10, 12, 14), np.int16), np.diag([1.0, 1.0, 2.0, 1.0]))
    nibabel.save(volume, tmp_path / "v.nii.gz")
    done = medvista(
        "try", "get_slice", "--image", "v.nii.gz", "--args", '{"plane": "coronal", "index": 5}', cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "coronal 5" in done.stdout
    scan = pydicom.data.get_testdata_file("CT_small.dcm", download=False)
    done = medvista("try", "dicom_info", "--image", scan, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "CT" in done.stdout


def test_try_says_which_frame_of_several_is_shown(tmp_path: Path) -> None:
    several = pydicom.data.get_testdata_file("emri_small.dcm", download=False)
    done = medvista("try", "dicom_info", "--image", several, "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, f"--image {several}: frame 0 of 10 is shown\n")
    assert json.loads(done.stdout)["images"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("try", "nothing"), 2, "no tool 'nothing'"),
        (("try", "zoom", "--args", "{"), 2, "--args is no JSON"),
        (("try", "zoom", "--args", "[]"), 2, "--args must be a JSON object"),
        (("try", "zoom", "--image", "no.png", "--args", "{}"), 2, "--image no.png: "),
        (("try", "zoom", "--image", "x.png", "--args", "{}"), 2, "bad_schema: 'bbox' is a required property"),
        (("try", "zoom", "--image", "x.png", "--args", '{"bbox": [9, 9, 9, 9]}'), 2, "bad_argument"),
        (("try", "failing:Fails", "--image", "x.png"), 1, "tool_failed: ValueError: boom"),
        (("try", "failing:Slow", "--image", "x.png", "--timeout", "0.5"), 1, "timed_out"),
        (("try", "failing:Needs", "--image", "x.png"), 2, "not_installed"),
        (("try", "failing:Nothing", "--image", "x.png"), 2, "no subclass"),
        (("try", "failing:NoRun", "--image", "x.png"), 2, "has no run: write that method"),
        (("try", "__main__:Hi", "--image", "x.png"), 2, "into a module that workers can import"),
        (("try", "zoom", "--image", ""), 2, "--image: an empty name"),
        (("try", "zoom", "--image", "failing.py"), 2, "none of the formats that are read: PNG, JPEG, TIFF, BMP, .npy"),
        (("try", "zoom", "--image", "x.png", "--out", "o.jpg"), 2, "--out o.jpg: what is written is a PNG"),
        (("try", "zoom", "--image", "x.png", "--timeout", "-1"), 2, "--timeout -1: a number of seconds above 0"),
        (("try", "zoom", "--image", "x.png", "--timeout", "nan"), 2, "--timeout nan: a number of seconds above 0"),
        (("try", "failing:Slow", "--image", "x.png", "--timeout", "0.01"), 1, "no result within 0.01 s"),
        (("prepare", "zoom"), 2, "needs no preparing"),
        (("no_such_command",), 2, "No such command"),
    ],
)
def test_errors_are_one_line_with_an_exit_code(
    arguments: tuple[str, ...], code: int, message: str, picture: Path, tmp_path: Path
) -> None:
    (tmp_path / "failing.py").write_text(
        "import time\n"
        "from medvista_ray.tools.base import Tool, ToolOutput\n"
        "class Fails(Tool):\n"
        "    name, description, parameters = 'fails', 'Fails.', {'type': 'object'}\n"
        "    def run(self, arguments, context):\n"
        "        raise ValueError('boom')\n"
        "class NoRun(Tool):\n"
        "    name, description, parameters = 'no_run', 'Lacks run.', {'type': 'object'}\n"
        "class Slow(Fails):\n"
        "    def run(self, arguments, context):\n"
        "        time.sleep(60)\n"
        "class Needs(Fails):\n"
        "    def run(self, arguments, context):\n"
        "        import a_package_that_is_not_there\n"
    )
    done = medvista(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("medvista: ")]
    assert len(errors) == 1, done.stderr
    assert message in errors[0]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("o.*"))
