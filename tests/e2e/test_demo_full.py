"""The whole demo, with the bars that it must reach: RL teaches to look, looking is what makes the difference."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command_line import MEDVISTA, make_environment
from demo_checks import check_files, check_report, check_summary

pytestmark = [pytest.mark.long, pytest.mark.timeout(3000)]

ROWS = ("base", "base_tools", "sft_tools", "rl_no_tools", "rl_tools")
FAMILIES = ("zoom", "window", "structure", "measure")
CHANCE = 0.25


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the demo; MEDVISTA_DEMO_RUN names a finished one to check instead."""
    if finished := os.environ.get("MEDVISTA_DEMO_RUN"):
        return Path(finished)
    out = tmp_path_factory.mktemp("demo") / "full"
    done = subprocess.run(
        [MEDVISTA, "demo", "--out", out],
        env=make_environment(),
        cwd=out.parent,
        capture_output=True,
        text=True,
        timeout=2900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.fixture(scope="module")
def summary(folder: Path) -> dict[str, Any]:
    found = check_summary(folder)
    wall_s = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in found["wall_s"].items())
    print(f"\n{wall_s}\n{json.dumps(found['accuracy'])}")
    return found


def test_the_summary_has_every_row_and_family(summary: dict[str, Any]) -> None:
    for row in ROWS:
        assert set(summary["accuracy"][row]) == {"overall", *FAMILIES}
        for family, accuracy in summary["accuracy"][row].items():
            assert set(accuracy) == {"sampled", "greedy", "low", "high", "n", "num_sources"}
            assert accuracy["low"] <= accuracy["sampled"] <= accuracy["high"]
            assert accuracy["n"] >= 200, (row, family)
        mean = sum(summary["accuracy"][row][family]["sampled"] for family in FAMILIES[:3]) / 3
        assert summary["accuracy"][row]["overall"]["sampled"] == pytest.approx(mean)
        assert 0 <= summary["valid_answers"][row] <= 1
        assert set(summary["calls_per_episode"][row]) == set(FAMILIES)
    assert set(summary["valid_tool_calls"]) == set(ROWS)
    assert isinstance(summary["seed"], int)


def test_rl_teaches_to_look(summary: dict[str, Any]) -> None:
    accuracy = summary["accuracy"]
    bars = {"zoom": (0.92, 0.95, 0.75), "window": (0.86, 0.90, 0.65)}
    for family, (sampled, greedy, cold) in bars.items():
        after, before = accuracy["rl_tools"][family], accuracy["sft_tools"][family]
        assert after["sampled"] >= sampled, family
        assert after["greedy"] >= greedy, family
        assert before["sampled"] <= cold, family
        assert after["sampled"] - before["sampled"] >= 0.25, family
        assert summary["calls_per_episode"]["rl_tools"][family] >= 1
    assert summary["valid_tool_calls"]["rl_tools"] >= 0.95


def test_without_tools_it_learns_what_can_be_seen_and_nothing_else(summary: dict[str, Any]) -> None:
    accuracy = summary["accuracy"]["rl_no_tools"]
    for family in ("zoom", "window"):
        assert abs(accuracy[family]["sampled"] - CHANCE) <= 0.10, family
    assert accuracy["structure"]["sampled"] >= 0.80
    assert summary["valid_answers"]["rl_no_tools"] >= 0.95
    assert summary["settled_groups"]["rl_no_tools"] == summary["settled_groups"]["rl_tools"]


def test_everything_is_written_down(folder: Path) -> None:
    check_files(folder, labels=("rl_tools", "rl_no_tools"))
    check_report(folder)
    for model in ("base", "sft_tools"):
        assert (folder / "models" / model / "config.json").is_file()
