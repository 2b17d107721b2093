"""Where everything of a run lies, and when a run counts as finished. Knows paths and the config, nothing of training.

config.yaml                       the resolved config, every default included
command                           whose run it is: demo, sft, train or eval
stages/<stage>.json               which stages of a recipe are complete
metrics.jsonl, tensorboard/       one line, and one event, per step
trajectories/<label>/             trajectories.msgpack, and trajectories.jsonl for people
blobs/                            copies of the images that the trajectories show, by digest
checkpoints/, models/             what learners write
evaluation/                       outcomes of held-out episodes
report.html
summary.json                      written last: a run without it is not finished
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from medvista_ray.config.load import dump_config, load_config
from medvista_ray.config.schema import RunConfig
from medvista_ray.errors import ConfigError

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_FOLDERS = (
    "stages",
    "tensorboard",
    "trajectories",
    "store",
    "weights",
    "blobs",
    "checkpoints",
    "models",
    "evaluation",
)
_FILES = ("summary.json", "report.html", "metrics.jsonl", "config.yaml", "command")


class RunDirectory:
    """The paths of one run."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def create(cls, root: str | Path, config: RunConfig, *, command: str, fresh: bool = False) -> RunDirectory:
        """Make the directory, or go on with the run in it; `ConfigError`, before anything changes, where that cannot be.

        A finished run under another config is no longer finished; `fresh` deletes what an earlier run wrote.

        Args:
            root: the directory.
            config: written as config.yaml.
            command: what runs here; a run of another command is left alone.
            fresh: whether to start over.
        """
        run = cls(Path(root))
        run._make_writable()
        if not run.config_path.exists() and any(run.root.iterdir()):
            raise ConfigError(f"out: {run.root} is not empty and holds no run: give an empty or a new folder")
        if run.config_path.exists() and not fresh and run.command != command:
            raise ConfigError(
                f"out: {run.root} holds a run of `medvista {run.command}`: give another run_name or --out"
            )
        if fresh:
            run._delete_contents()
        write_atomic(run._command_path, command.encode())
        text = dump_config(config)
        if not run.config_path.exists() or run.config_path.read_text(encoding="utf-8") != text:
            run.mark_unfinished()
            write_atomic(run.config_path, text.encode())
        return run

    @classmethod
    def open(cls, root: str | Path) -> RunDirectory:
        """Open an existing run for reading; `ConfigError` if there is none."""
        run = cls(Path(root))
        if not run.config_path.is_file():
            raise ConfigError(f"{run.root} holds no run (no config.yaml): give the folder that a run wrote")
        return run

    @property
    def config_path(self) -> Path:
        """The resolved config."""
        return self.root / "config.yaml"

    @property
    def _command_path(self) -> Path:
        return self.root / "command"

    @property
    def command(self) -> str:
        """The sub-command whose run this is: demo, sft, train or eval."""
        return self._command_path.read_text(encoding="utf-8") if self._command_path.is_file() else "?"

    @property
    def summary_path(self) -> Path:
        """The numbers of a finished run."""
        return self.root / "summary.json"

    @property
    def report_path(self) -> Path:
        """The page for people."""
        return self.root / "report.html"

    @property
    def metrics_path(self) -> Path:
        """One line per step."""
        return self.root / "metrics.jsonl"

    @property
    def stages_path(self) -> Path:
        """Markers of complete stages."""
        return self.root / "stages"

    @property
    def blobs_path(self) -> Path:
        """Copies of shown images."""
        return self.root / "blobs"

    @property
    def store_path(self) -> Path:
        """The blob store of a local run; everything in it, not only what is shown."""
        return self.root / "store"

    def tensorboard_path(self, label: str) -> Path:
        """Event files of one part of a run."""
        return self.root / "tensorboard" / check_label(label)

    def trajectories_path(self, label: str) -> Path:
        """Recorded trajectories under one label, for example `rl_tools`."""
        return self.root / "trajectories" / check_label(label)

    def checkpoints_path(self, label: str) -> Path:
        """Checkpoints of one training stage."""
        return self.root / "checkpoints" / check_label(label)

    def model_path(self, label: str) -> Path:
        """One policy as an ordinary Hugging Face folder."""
        return self.root / "models" / check_label(label)

    def outcomes_path(self, row: str) -> Path:
        """Outcomes of the held-out episodes of one row of the table."""
        return self.root / "evaluation" / f"{check_label(row)}.jsonl"

    @property
    def is_finished(self) -> bool:
        """Return whether the run went to its end; a directory without a summary is not taken for finished."""
        return self.summary_path.is_file()

    def mark_unfinished(self) -> None:
        """Take back the end of a run before any of its parts is made anew."""
        self.summary_path.unlink(missing_ok=True)
        self.report_path.unlink(missing_ok=True)

    def read_config(self) -> RunConfig:
        """Read the resolved config."""
        return load_config([self.config_path])

    def recorded_labels(self) -> list[str]:
        """Return the labels that trajectories were recorded under, in alphabetical order."""
        return sorted(path.parent.name for path in self.root.glob("trajectories/*/trajectories.msgpack"))

    def _make_writable(self) -> None:
        probe = self.root / f".probe-{os.getpid()}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(f"out: cannot write to {self.root} ({reason}): choose a folder that you own") from error

    def _delete_contents(self) -> None:
        """Delete what a run writes, the end marker first, and nothing that somebody else put here."""
        for name in _FILES:
            (self.root / name).unlink(missing_ok=True)
        for name in _FOLDERS:
            shutil.rmtree(self.root / name, ignore_errors=True)


def check_label(label: str) -> str:
    """Return a label that is safe as a file name; `ValueError` for another."""
    if not _LABEL.fullmatch(label):
        raise ValueError(f"a label is 1 to 64 letters, digits, '_', '.', '-', got {label!r}")
    return label


def write_atomic(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a whole file or nothing: a reader never sees half of it; if durable, not even after a power loss."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    with partial.open("wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    partial.replace(path)
    if durable:
        _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
