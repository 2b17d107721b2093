"""An env, a tool and an expert in a package of their own: built, installed, checked, fine-tuned and trained."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import make_environment

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIG = EXAMPLES / "own_package" / "config.yaml"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the installed package `site`, the data `my_data` and the fine-tuned policy of the env."""
    folder = tmp_path_factory.mktemp("other")
    source = folder / "source"
    source.mkdir()
    for path in (EXAMPLES / "own_package").rglob("*"):  # a build writes beside its sources
        if path.suffix in (".py", ".toml"):
            (source / path.relative_to(EXAMPLES / "own_package")).parent.mkdir(exist_ok=True)
            (source / path.relative_to(EXAMPLES / "own_package")).write_bytes(path.read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, source], check=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True, timeout=300)
    subprocess.run(
        [sys.executable, EXAMPLES / "own_data.py", folder / "my_data"], check=True, timeout=60, env=make_environment()
    )
    return folder


@pytest.fixture(scope="module")
def fine_tuned(medvista, other: Path) -> Path:
    words = ["coldstart.num_trajectories=256"]
    done = medvista(
        ["sft", CONFIG, f"data.source={other / 'my_data'}", "--out", other / "sft", *words], env=path_to(other)
    )
    assert done.returncode == 0, done.stderr
    return other / "sft" / "models" / "sft"


def path_to(other: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(other / "site")}


def test_it_passes_the_strict_check(medvista, other: Path) -> None:
    done = medvista(["check-env", "brightness_gym.envs:BrightnessEnv", "--json"], env=path_to(other))
    assert done.returncode == 0, done.stdout + done.stderr
    checks = json.loads(done.stdout)["checks"]
    assert {check["check"] for check in checks} >= {"gymnasium", "no label leaves", "deadline", "memory", "close"}
    assert all(check["holds"] for check in checks)


@pytest.mark.parametrize("mode", ["local", "ray"])
def test_it_trains(medvista, other: Path, fine_tuned: Path, mode: str) -> None:
    out = other / f"rl-{mode}"
    words = [f"data.source={other / 'my_data'}", f"policy.path={fine_tuned}", f"mode={mode}", "data.num_tasks=16"]
    done = medvista(["train", CONFIG, *words, "--out", out], env=path_to(other))
    assert done.returncode == 0, done.stderr
    groups = json.loads((out / "summary.json").read_text())["groups"]
    assert groups["consumed"] >= 4, groups  # a step at least: the fine-tuned policy is wrong in some members
    assert groups["consumed"] + groups["filtered"] == groups["submitted"] == 16
    rows = [json.loads(line)["values"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert any("calls" in key for row in rows for key in row), sorted(rows[-1])
    recorded = "".join(path.read_text() for path in out.rglob("trajectories.jsonl"))
    assert '"brightness"' in recorded, "the fine-tuned policy calls the tool of the other package"
