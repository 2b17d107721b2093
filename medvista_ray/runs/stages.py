"""Which stages of a recipe are complete, so that a second call goes on where the first one stopped.

A stage is complete under a fingerprint: a digest of the settings it depends on and of the stages before it. Changed
settings change the fingerprint, and with it those of every later stage. Knows no stage by name.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medvista_ray.config.schema import RunConfig
from medvista_ray.runs.directory import RunDirectory, check_label, write_atomic


def compute_fingerprint(config: RunConfig, keys: Sequence[str], *, after: Sequence[str] = ()) -> str:
    """Digest the named sections or fields (`sft`, `env.max_turns`) and the fingerprints of the stages before."""
    plain = asdict(config)
    chosen = {key: _select(plain, key) for key in sorted(keys)}
    text = json.dumps({"settings": chosen, "after": list(after)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _select(plain: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(plain, dict) or part not in plain:
            raise ValueError(f"{key!r} is no section or field of the config")
        plain = plain[part]
    return plain


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningStage:
    """A stage under way."""

    goes_on: bool  # whether an interrupted call under the same fingerprint left something
    before_s: float  # what such calls took
    started_s: float

    def elapsed_s(self) -> float:
        """Return the seconds of this call and of the interrupted ones before it."""
        return self.before_s + time.monotonic() - self.started_s


class StageMarkers:
    """One small file per complete stage, with what later stages and the summary need of it."""

    def __init__(self, run: RunDirectory) -> None:
        self._folder = run.stages_path
        self._run = run

    def results(self, stage: str, fingerprint: str) -> dict[str, Any] | None:
        """Return what a complete stage left, or None when it has to run (again)."""
        path = self._folder / f"{check_label(stage)}.json"
        if not path.exists():
            return None
        marker = json.loads(path.read_text(encoding="utf-8"))
        return dict(marker["results"]) if marker["fingerprint"] == fingerprint else None

    @contextmanager
    def running(self, stage: str, fingerprint: str) -> Iterator[RunningStage]:
        """Take a stage back, and keep the time while it runs; a finished run is none from here on.

        Only a stage that was begun before under the same fingerprint may go on from what it left. Its time counts the
        calls before, but for one that was killed.
        """
        self._run.mark_unfinished()
        (self._folder / f"{check_label(stage)}.json").unlink(missing_ok=True)
        before_s = self._elapsed_s(stage, fingerprint)
        running = RunningStage(goes_on=before_s is not None, before_s=before_s or 0.0, started_s=time.monotonic())
        if before_s is None:
            self._note(stage, fingerprint, elapsed_s=0.0)
        is_done = False
        try:
            yield running
            is_done = True
        finally:
            if not is_done:
                self._note(stage, fingerprint, elapsed_s=running.elapsed_s())

    def _elapsed_s(self, stage: str, fingerprint: str) -> float | None:
        begun = self._begun_path(stage)
        if not begun.exists():
            return None
        marker = json.loads(begun.read_text(encoding="utf-8"))
        return float(marker["elapsed_s"]) if marker["fingerprint"] == fingerprint else None

    def _note(self, stage: str, fingerprint: str, *, elapsed_s: float) -> None:
        self._folder.mkdir(exist_ok=True)
        marker = {"fingerprint": fingerprint, "elapsed_s": elapsed_s}
        write_atomic(self._begun_path(stage), json.dumps(marker).encode())

    def _begun_path(self, stage: str) -> Path:
        return self._folder / f"{stage}.begun"

    def complete(self, stage: str, fingerprint: str, results: Mapping[str, Any]) -> None:
        """Mark a stage as complete, after everything it wrote; `results` are plain JSON values."""
        self._folder.mkdir(exist_ok=True)
        marker = {"stage": check_label(stage), "fingerprint": fingerprint, "results": dict(results)}
        write_atomic(self._folder / f"{stage}.json", json.dumps(marker, indent=1).encode())
