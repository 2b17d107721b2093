"""Bad input, as a user meets it: one line that names key, value and remedy, exit code 2, nothing half-written."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from medvista_ray.images.codec import encode_png


def assert_refused(done: subprocess.CompletedProcess[str], *wanted: str) -> None:
    """Check exit code 2 and exactly one line on stderr that holds every wanted text."""
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("medvista: ")
    for text in wanted:
        assert text in lines[0]
    assert not done.stdout.strip()


def assert_unfinished(folder: Path) -> None:
    """Check that nobody can take a run directory, if there is one, for a finished run."""
    assert not (folder / "summary.json").exists()
    assert not (folder / "report.html").exists()
    assert not (folder / "models").exists()


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("learner.learning_rate=1e-4", ("'learner.learning_rate'", "did you mean learner.")),
        ("nonsense=1", ("'nonsense'", "sections are")),
        ("rollout.group_size=1", ("rollout.group_size", ">= 2", "got 1")),
        ("learner.lr=-1.0", ("learner.lr", "> 0", "got -1.0")),
        ("learner.lr=fast", ("learner.lr", "a number", "'fast'")),
        ("mode=cloud", ("mode", "ray, local", "'cloud'")),
        ("learner.lr", ("'learner.lr'", "key=value")),
        ("=1", ("'=1'", "key=value")),
        ("data.weights=[1.0", ("data.weights", "numbers", "'[1.0'")),
        ("env.tools=[zoomm]", ("env.tools", "'zoomm'", "zoom, window_level")),
        ("env.target=no_such_module:Env", ("env.target", "no_such_module")),
        ("data.families=[zoo]", ("data.families", "zoo")),
        ("data.source=/no/such/folder", ("data.source", "/no/such/folder", "'demo'")),
    ],
)
def test_a_wrong_override_is_named(medvista, small_config: Path, tmp_path: Path, override: str, wanted) -> None:
    out = tmp_path / "run"
    assert_refused(medvista(["train", small_config, "--out", out, override]), *wanted)
    assert_unfinished(out)


def test_a_wrong_key_in_a_file_is_named_with_its_file(medvista, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("buffer:\n  max_stalenes: 3\n")
    assert_refused(medvista(["train", path]), "buffer.max_stalenes", str(path), "did you mean buffer.max_staleness?")


def test_wrong_use_of_the_command_is_one_line(medvista, tmp_path: Path, small_config: Path) -> None:
    assert_refused(medvista(["train"]), "--resume")
    assert_refused(medvista(["train", "--resume", tmp_path / "nothing"]), "nothing", "holds no run")
    assert_refused(medvista(["train", tmp_path / "missing.yaml"]), "missing.yaml", "does not exist")
    assert_refused(medvista(["trainn"]), "trainn")
    assert_refused(medvista(["train", small_config, "--lcoal"]), "--lcoal")
    assert_refused(medvista(["report", tmp_path]), str(tmp_path), "holds no run")


@pytest.fixture
def hide(tmp_path: Path):
    """Return a function that makes the environment of a machine where some packages are not installed."""

    def make(*modules: str) -> dict[str, str]:
        folder = tmp_path / "hide"
        folder.mkdir()
        lines = ["import sys", *(f"sys.modules[{name!r}] = None" for name in modules)]
        (folder / "sitecustomize.py").write_text("\n".join(lines))
        return {"PYTHONPATH": str(folder)}

    return make


@pytest.mark.parametrize(
    ("modules", "arguments", "wanted"),
    [
        (["ray"], ["demo"], ("mode=ray", "(ray)", "pip install 'medvista-ray[ray]'", "--local")),
        (["torch"], ["demo", "--local"], ("(torch)", "pip install 'medvista-ray[train]'")),
        (["nilearn"], ["demo", "--quick"], ("data.source=demo", "(nilearn)", "pip install 'medvista-ray[demo]'")),
    ],
)
def test_a_missing_package_names_its_extra(medvista, hide, tmp_path: Path, modules, arguments, wanted) -> None:
    out = tmp_path / "run"
    assert_refused(medvista([*arguments, "--out", out], env=hide(*modules)), *wanted)
    assert not out.exists()


@pytest.mark.parametrize("command", ["sft", "train", "eval"])
def test_every_command_names_the_missing_package(medvista, hide, small_config: Path, command: str) -> None:
    done = medvista([command, small_config], env=hide("transformers"))
    assert_refused(done, "(transformers)", "pip install 'medvista-ray[train]'")


# --- a user's own folder
def write_tasks(folder: Path, image: bytes) -> Path:
    """Write a data set of one good and one other image in each split."""
    folder.mkdir()
    good = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    for split in ("train", "held_out"):
        (folder / f"{split}-good.png").write_bytes(encode_png(good))
        (folder / f"{split}-other.png").write_bytes(image)
    task = {"family": "zoom", "question": "Which?", "choices": ["A", "B"], "answer": "A"}
    lines = [
        json.dumps({"task_id": f"{split}-{name}", "split": split, "images": [f"{split}-{name}"], **task})
        for split in ("train", "held_out")
        for name in ("other.png", "good.png")
    ]
    (folder / "tasks.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("command", ["train", "eval"])
@pytest.mark.parametrize("image", [b"this is no image", b"\x89PNG\r\n\x1a\n damaged"], ids=["text", "damaged"])
def test_an_unreadable_image_is_named(medvista, small_config: Path, tmp_path: Path, command: str, image) -> None:
    data, out = write_tasks(tmp_path / "data", image), tmp_path / "run"
    done = medvista([command, small_config, "--out", out, f"data.source={data}"])
    assert_refused(done, "data.source", "tasks.jsonl line", "-other.png'")
    assert_unfinished(out)


def test_a_missing_image_and_a_broken_line_are_named(medvista, small_config: Path, tmp_path: Path) -> None:
    data = write_tasks(tmp_path / "data", b"")
    (data / "train-other.png").unlink()
    done = medvista(["train", small_config, "--out", tmp_path / "run", f"data.source={data}"])
    assert_refused(done, "data.source", "line 1", "'train-other.png'")
    (data / "tasks.jsonl").write_text('{"task_id": 1,\n')
    done = medvista(["train", small_config, "--out", tmp_path / "run", f"data.source={data}"])
    assert_refused(done, "data.source", "line 1")


# --- a model folder that is none
@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (None, ("is not a folder",)),
        ({}, ("no config.json",)),
        ({"config.json": "{"}, ("not JSON",)),
        ({"config.json": '{"model_type": "llama"}'}, ("'llama'", "qwen3_vl")),
    ],
    ids=["missing", "empty", "damaged", "llama"],
)
@pytest.mark.parametrize("command", ["sft", "train", "eval"])
def test_a_model_folder_that_is_none_is_named(medvista, small_config: Path, tmp_path: Path, command, files, wanted):
    model, out = tmp_path / "model", tmp_path / "run"
    if files is not None:
        model.mkdir()
        for name, text in files.items():
            (model / name).write_text(text)
    done = medvista([command, small_config, "--out", out, f"policy.path={model}"])
    assert_refused(done, "policy.path", str(model), *wanted)
    assert not out.exists()


def test_damaged_weights_are_named(medvista, small_config: Path, tiny_policy: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "run"
    model.mkdir()
    for path in tiny_policy.iterdir():
        data = path.read_bytes()
        (model / path.name).write_bytes(data[: len(data) // 2] if path.suffix == ".safetensors" else data)
    done = medvista(["eval", small_config, "--out", out, f"policy.path={model}"])
    assert_refused(done, "policy.path", str(model), "weight files")
    assert_unfinished(out)


# --- where a run is written
def test_a_run_directory_that_cannot_be_written_is_named(medvista, small_config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "run", Path("/proc/medvista")):  # root may write anywhere else
        for command in ("sft", "train", "eval"):
            done = medvista([command, small_config, "--out", out])
            assert_refused(done, "out", str(out), "choose a folder")


def test_a_folder_with_something_else_in_it_is_left_alone(medvista, small_config: Path, tmp_path: Path) -> None:
    out = tmp_path / "photos"
    out.mkdir()
    (out / "holiday.txt").write_text("keep me")
    done = medvista(["train", small_config, "--out", out, "--fresh"])
    assert_refused(done, "out", str(out), "new folder")
    assert [path.name for path in out.iterdir()] == ["holiday.txt"]


def test_help_says_how_to_use_every_command(medvista) -> None:
    for command in re.findall(r"│ ([a-z][a-z-]+) {2,}", medvista(["--help"]).stdout):
        done = medvista([command, "--help"])
        assert done.returncode == 0
        assert f"Example: medvista {command}" in " ".join(done.stdout.replace("│", " ").split())
