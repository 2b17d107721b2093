"""`segment` on the base installation: with onnxruntime out of reach of every process it falls back, and says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvista_ray.tools.litemedsam import ConversionRecord, model_folder, write_record

PLAY = """
import gymnasium
import json
import medvista_ray.envs
env = gymnasium.make("medvista/InteractiveSegmentation-v0")
env.reset(seed=0)
call = {"name": "add_bbox", "arguments": {"bbox": [100, 100, 900, 900]}}
seen, *_ = env.step(f"<think>Mark it.</think><tool_call>{json.dumps(call)}</tool_call>")
env.close()
print(seen)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return an environment whose processes find no onnxruntime, with a cache folder of its own."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text("import sys\nsys.modules['onnxruntime'] = None\n")
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join((str(hooks), os.environ.get("PYTHONPATH", ""))),
        "MEDVISTA_CACHE": str(tmp_path / "cache"),
    }


def pretend_prepared(cache: str) -> None:
    """Write the record of a conversion: nothing else is looked at before onnxruntime is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDVISTA_CACHE", cache)
        model_folder().mkdir(parents=True)
        record = ConversionRecord(
            checkpoint_sha256="", encoder_sha256="", decoder_sha256="", encoder_max_diff=0.0, decoder_max_diff=0.0
        )
        write_record(model_folder(), record)


def run(command: list[str], environment: dict[str, str], cwd: Path) -> str:
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("is_prepared", [False, True])
def test_it_falls_back_and_names_what_is_missing(
    environment: dict[str, str], is_prepared: bool, tmp_path: Path
) -> None:
    if is_prepared:
        pretend_prepared(environment["MEDVISTA_CACHE"])
    pixels = np.full((100, 120), 30, np.uint8)
    pixels[30:60, 40:80] = 200
    Image.fromarray(pixels).save(tmp_path / "x.png")
    given = ["--image", "x.png", "--args", json.dumps({"bbox": [300, 250, 700, 650]}), "--json"]
    text = json.loads(
        run([sys.executable, "-m", "medvista_ray", "tools", "try", "segment", *given], environment, tmp_path)
    )["text"]
    assert text.startswith(
        "fallback: region growing and threshold; LiteMedSAM needs pip install 'medvista-ray[segment]'"
    )
    assert ("medvista tools prepare segment" in text) is not is_prepared
    assert text.splitlines()[1].startswith("area ")


def test_the_env_of_interactive_segmentation_can_be_played(environment: dict[str, str], tmp_path: Path) -> None:
    pretend_prepared(environment["MEDVISTA_CACHE"])
    seen = run([sys.executable, "-c", PLAY], environment, tmp_path)
    assert "fallback: region growing" in seen
    assert "not_installed" not in seen
