"""The examples run by themselves, and a user's own env, tool and data train by the command that they name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import make_environment

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_runs_by_itself(path: Path, tmp_path: Path) -> None:
    arguments = [tmp_path / "my_data"] if path.name == "own_data.py" else []
    done = subprocess.run(
        [sys.executable, path, *arguments],
        cwd=tmp_path,
        env=make_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize(
    "words",
    [("env.target=own_env:BrighterHalf",), ("env.target=own_rubric:ShortThoughts", "env.tools=[zoom,own_tool:Invert]")],
    ids=["env", "rubric and tool"],
)
def test_own_code_trains(medvista, small_config: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    out = tmp_path / "run"
    done = medvista(["train", small_config, "--out", out, "data.num_tasks=6", *words], cwd=EXAMPLES)
    assert done.returncode == 0, done.stderr
    groups = json.loads((out / "summary.json").read_text())["groups"]
    assert groups["consumed"] + groups["filtered"] == groups["submitted"] == 6
    assert (out / "models" / "rl" / "model.safetensors").is_file()


def test_own_data_train_and_are_evaluated(medvista, small_config: Path, tmp_path: Path) -> None:
    data, out, scored = tmp_path / "my_data", tmp_path / "run", tmp_path / "eval"
    subprocess.run([sys.executable, EXAMPLES / "own_data.py", data], check=True, timeout=60, env=make_environment())
    words = (f"data.source={data}", "data.families=[]")
    done = medvista(["train", small_config, "--out", out, *words, "buffer.groups_per_step=4"])
    assert done.returncode == 0, done.stderr
    assert "Next: medvista eval" in done.stdout
    model = out / "models" / "rl"
    done = medvista(["eval", small_config, "--out", scored, "--json", *words, "num_held_out=0", f"policy.path={model}"])
    assert done.returncode == 0, done.stderr
    accuracy = json.loads(done.stdout)["accuracy"]["eval"]
    assert set(accuracy) == {"overall", "brightness"}
    assert accuracy["brightness"]["n"] == 8
