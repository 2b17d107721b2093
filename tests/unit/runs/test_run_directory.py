"""A run directory is refused in one line where it cannot be, and finished only when its summary was written."""

from dataclasses import replace
from pathlib import Path

import pytest

from medvista_ray.config.schema import RunConfig, SFTConfig
from medvista_ray.errors import ConfigError
from medvista_ray.runs.directory import RunDirectory, write_atomic

CONFIG = RunConfig(run_name="demo")


def test_the_resolved_config_reads_back(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "new" / "run", CONFIG, command="train")
    assert RunDirectory.open(run.root).read_config() == CONFIG


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere"])
def test_a_place_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"^out: cannot write to .*: choose a folder that you own$") as caught:
        RunDirectory.create(tmp_path / place, CONFIG, command="train")
    assert "\n" not in str(caught.value)


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        RunDirectory.create(tmp_path, CONFIG, fresh=True, command="train")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_without_a_run_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no run \(no config.yaml\)"):
        RunDirectory.open(tmp_path)


def test_only_a_summary_makes_a_run_finished(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", CONFIG, command="train")
    assert not run.is_finished
    write_atomic(run.summary_path, b"{}")
    assert run.is_finished
    assert RunDirectory.create(run.root, CONFIG, command="train").is_finished  # the same settings again


def test_other_settings_take_the_end_back(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", CONFIG, command="train")
    write_atomic(run.summary_path, b"{}")
    changed = replace(CONFIG, sft=SFTConfig(steps=7))
    assert not RunDirectory.create(run.root, changed, command="train").is_finished
    assert run.read_config() == changed


def test_fresh_deletes_what_a_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", CONFIG, command="train")
    write_atomic(run.summary_path, b"{}")
    run.stages_path.mkdir()
    (run.stages_path / "sft.json").write_text("{}")
    (run.root / "my_notes.txt").write_text("keep")
    RunDirectory.create(run.root, CONFIG, fresh=True, command="train")
    assert sorted(path.name for path in run.root.iterdir()) == ["command", "config.yaml", "my_notes.txt"]


@pytest.mark.parametrize("label", ["", "../up", "a/b", ".hidden", "x" * 65])
def test_a_label_is_a_file_name(tmp_path: Path, label: str) -> None:
    with pytest.raises(ValueError, match="a label is"):
        RunDirectory(tmp_path).trajectories_path(label)


def test_an_atomic_write_leaves_no_part_behind(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"one")
    write_atomic(tmp_path / "a", b"two", durable=False)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"two")]


def test_a_run_of_another_command_is_left_alone(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", CONFIG, command="train")
    write_atomic(run.summary_path, b"{}")
    before = {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"holds a run of `medvista train`: give another run_name or --out"):
        RunDirectory.create(run.root, replace(CONFIG, seed=5), command="eval")
    assert before == {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()}
    assert RunDirectory.create(run.root, CONFIG, command="eval", fresh=True).command == "eval"
