"""What every finished demo must show, whatever its accuracy."""

import json
import re
from pathlib import Path
from typing import Any

from medvista_ray.runs.directory import RunDirectory
from medvista_ray.runs.summary import read_summary

ENDS = ("consumed", "filtered", "failed", "stale", "cancelled")


def check_summary(folder: Path) -> dict[str, Any]:
    """Check the schema and what must hold in any asynchronous run on Ray; return the numbers."""
    read_summary(RunDirectory.open(folder))  # names, types, bounds
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    groups = summary["groups"]
    assert groups["submitted"] == sum(groups[end] for end in ENDS)
    assert groups["consumed"] > 0
    assert groups["failed"] <= 0.02 * groups["submitted"]
    assert 0 < summary["max_abs_logprob_diff"] < 1e-3
    assert summary["mode"] == "ray"
    assert summary["staleness"]["max"] >= 1
    assert len({actor["pid"] for actor in summary["actors"]}) >= 4
    assert sum("Shard" in actor["class"] for actor in summary["actors"]) >= 2
    assert summary["num_parameters"] > 1_000_000
    assert summary["rollout_tokens_per_s"] > 0
    assert 0 < summary["peak_pss_bytes"] <= 8 * 2**30
    wall_s = summary["wall_s"]
    assert all(wall_s[stage] > 0 for stage in ("data", "sft", "rl", "eval"))
    assert wall_s["total"] >= wall_s["sft"] + wall_s["rl"] + wall_s["eval"]
    assert {"python", "torch", "transformers", "ray", "medvista_ray"} <= summary["versions"].keys()
    return summary


def check_report(folder: Path) -> None:
    """Check that the report shows images and loads nothing from outside."""
    page = (folder / "report.html").read_text()
    assert page.count("data:image/") >= 10
    assert "<svg" in page
    assert not re.search(r"<script|<iframe|<link\b|@import", page)
    outside = [
        target for target in re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"')\s>]+)", page) if target[0] not in "#"
    ]
    assert all(target.startswith("data:") for target in outside), outside[:3]


def check_files(folder: Path, *, labels: tuple[str, ...]) -> None:
    """Check that a run directory has everything that a user is told of."""
    for name in ("config.yaml", "metrics.jsonl", "summary.json", "report.html"):
        assert (folder / name).stat().st_size > 0
    for label in labels:
        assert list((folder / "tensorboard" / label).glob("events.out.tfevents.*"))
        assert (folder / "trajectories" / label / "trajectories.msgpack").stat().st_size > 0
        assert (folder / "trajectories" / label / "trajectories.jsonl").stat().st_size > 0
        assert (folder / "models" / label / "model.safetensors").stat().st_size > 0
    assert any((folder / "blobs").iterdir())
