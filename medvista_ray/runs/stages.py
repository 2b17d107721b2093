"""Which stages of a recipe are complete, so that a second call goes on where the first one stopped.

A stage is complete under a fingerprint: a digest of the settings it depends on and of the stages before it. Changed
settings change the fingerprint, and with it those of every later stage. Knows no stage by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
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

    def begin(self, stage: str, fingerprint: str) -> bool:
        """Take a stage back before it runs; a finished run is none from here on.

        Returns whether the stage was begun before under the same fingerprint: only then may it go on from what it left.
        """
        self._run.mark_unfinished()
        (self._folder / f"{check_label(stage)}.json").unlink(missing_ok=True)
        begun = self._folder / f"{stage}.begun"
        if begun.exists() and begun.read_text(encoding="utf-8") == fingerprint:
            return True
        self._folder.mkdir(exist_ok=True)
        write_atomic(begun, fingerprint.encode())
        return False

    def complete(self, stage: str, fingerprint: str, results: Mapping[str, Any]) -> None:
        """Mark a stage as complete, after everything it wrote; `results` are plain JSON values."""
        self._folder.mkdir(exist_ok=True)
        marker = {"stage": check_label(stage), "fingerprint": fingerprint, "results": dict(results)}
        write_atomic(self._folder / f"{stage}.json", json.dumps(marker, indent=1).encode())
