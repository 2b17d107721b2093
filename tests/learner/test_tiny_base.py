"""The script that makes the shipped base runs, and learns; the shipped base is what its card says."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medvista_ray.policy.loading import resolve_policy_path


def test_a_few_steps_lower_the_loss(tmp_path: Path) -> None:
    out = tmp_path / "base"
    command = [sys.executable, "-m", "medvista_ray.recipes.tiny_base", "--out", str(out), "--threads", "1"]
    command += ["--dense-steps", "12", "--language-steps", "12", "--held-out-items", "2"]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    card = json.loads((out / "base_card.json").read_text())
    for phase in ("dense", "language"):
        first, last = card["loss_first_and_last"][phase]
        assert last < 0.85 * first, (phase, first, last)


def test_the_shipped_base_is_what_its_card_says() -> None:
    folder = resolve_policy_path("builtin:tiny_base")
    weights = folder / "model.safetensors"
    card = json.loads((folder / "base_card.json").read_text())
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == card["sha256"]
    assert weights.stat().st_size <= 10 * 2**20
    assert 1_000_000 <= card["num_parameters"] <= 4_000_000


@pytest.mark.parametrize(
    ("kind", "bar"),
    [
        ("where", 0.99),
        ("crop", 0.98),
        ("crop_after_view", 0.98),
        ("window", 0.95),
        ("window_after_view", 0.95),
    ],
)
def test_the_card_reaches_the_bars_of_perception(kind: str, bar: float) -> None:
    card = json.loads((resolve_policy_path("builtin:tiny_base") / "base_card.json").read_text())
    assert card["held_out_items_per_kind"] >= 400
    assert card["held_out_accuracy"][kind] >= bar
