"""What a user has trained stays: a command that is refused, or another command, changes nothing in a finished run."""

import re
import shlex
from pathlib import Path

import pytest
from test_cli_errors import assert_refused

# The expert's zoom call has 18 tokens.
FEW_UPDATES = ("sft.steps=2", "sft.batch_size=4", "num_trajectories=16", "env.max_action_tokens=40")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> Path:
    """Return a finished training run."""
    import subprocess

    from command_line import MEDVISTA, SMALL_RUN, make_environment

    folder = tmp_path_factory.mktemp("finished")
    config = folder / "small.yaml"
    config.write_text(SMALL_RUN.format(policy=tiny_policy))
    command = [MEDVISTA, "train", config, "--out", folder / "run", "data.num_tasks=6"]
    subprocess.run(command, env=make_environment(), cwd=folder, capture_output=True, timeout=240, check=True)
    assert (folder / "run" / "summary.json").is_file()
    return folder / "run"


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["train", "CONFIG", "--out", "RUN", "learner.lr=1e-3"], "holds a run already"),
        (["train", "CONFIG", "--out", "RUN", "--fresh", "data.source=/no/such/folder"], "data.source"),
        (["train", "CONFIG", "--out", "RUN", "--fresh", "env.view_size_px=448"], "env.view_size_px must be 84"),
        (["train", "--resume", "RUN", "--fresh"], "under the settings of the run"),
        (["train", "--resume", "RUN", "learner.lr=1e-3"], "under the settings of the run"),
        (["train", "--resume", "RUN", "--local"], "under the settings of the run"),
        (["eval", "CONFIG", "--out", "RUN"], "holds a run of `medvista train`"),
        (["sft", "CONFIG", "--out", "RUN"], "holds a run of `medvista train`"),
        (["demo", "--local", "data.source=pocket", "families=zoom", "--out", "RUN"], "holds a run of `medvista train`"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_refused_command_leaves_a_finished_run_alone(medvista, small_config: Path, finished: Path, words, wanted):
    before = contents(finished)
    places = {"CONFIG": str(small_config), "RUN": str(finished)}
    assert_refused(medvista([places.get(word, word) for word in words]), wanted)
    assert contents(finished) == before


def test_every_next_command_runs_as_it_is_printed(medvista, small_config: Path, tmp_path: Path) -> None:
    done = medvista(["sft", small_config, "--out", tmp_path / "run", *FEW_UPDATES])
    for command in ("train", "eval"):
        assert done.returncode == 0, done.stderr
        (printed,) = re.findall(r"Next: medvista (.*)", done.stdout)
        assert printed.startswith(command)
        before = contents(tmp_path / "run")
        done = medvista([*shlex.split(printed), *(["data.num_tasks=4"] if command == "train" else [])])
        assert contents(tmp_path / "run") == before
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run-rl-eval" / "summary.json").is_file()


def test_a_finished_fine_tuning_is_not_made_again(medvista, small_config: Path, tmp_path: Path) -> None:
    words = ["sft", small_config, "--out", tmp_path / "run", *FEW_UPDATES]
    assert medvista(words).returncode == 0
    before = contents(tmp_path / "run")
    assert_refused(medvista(words), "holds a finished run", "--fresh")
    assert contents(tmp_path / "run") == before
    assert medvista([*words, "--fresh"]).returncode == 0
