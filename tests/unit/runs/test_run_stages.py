"""A complete stage is skipped; changed settings run it and every later one again."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from medvista_ray.config.schema import EnvConfig, RunConfig, SFTConfig
from medvista_ray.runs.directory import RunDirectory, write_atomic
from medvista_ray.runs.stages import StageMarkers, compute_fingerprint

CONFIG = RunConfig()


def fingerprints(config: RunConfig) -> tuple[str, str]:
    sft = compute_fingerprint(config, ["seed", "sft", "env.max_turns"])
    return sft, compute_fingerprint(config, ["learner"], after=[sft])


def test_a_setting_changes_its_stage_and_the_later_ones() -> None:
    changed = fingerprints(replace(CONFIG, sft=SFTConfig(steps=7)))
    assert changed[0] != fingerprints(CONFIG)[0]
    assert changed[1] != fingerprints(CONFIG)[1]


def test_a_setting_that_a_stage_does_not_name_leaves_it_alone() -> None:
    assert fingerprints(replace(CONFIG, env=EnvConfig(max_action_tokens=9))) == fingerprints(CONFIG)
    assert compute_fingerprint(CONFIG, ["sft", "seed"]) == compute_fingerprint(CONFIG, ["seed", "sft"])


def test_a_misspelt_key_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'sft.step' is no section or field"):
        compute_fingerprint(CONFIG, ["sft.step"])


def test_a_marker_counts_only_under_its_fingerprint(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", CONFIG, command="train")
    markers = StageMarkers(run)
    assert markers.results("sft", "aa") is None
    markers.complete("sft", "aa", {"wall_s": 1.5})
    assert StageMarkers(run).results("sft", "aa") == {"wall_s": 1.5}
    assert markers.results("sft", "bb") is None


def test_beginning_a_stage_takes_it_and_the_end_of_the_run_back(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", CONFIG, command="train")
    markers = StageMarkers(run)
    with markers.running("sft", "any"):
        pass
    markers.complete("sft", "aa", {})
    write_atomic(run.summary_path, b"{}")
    with markers.running("sft", "any"):
        pass
    assert markers.results("sft", "aa") is None
    assert not run.is_finished


def test_a_stage_goes_on_only_under_the_settings_it_was_begun_with(tmp_path: Path) -> None:
    markers = StageMarkers(RunDirectory.create(tmp_path / "run", RunConfig(), command="train"))

    def goes_on(fingerprint: str) -> bool:
        with markers.running("rl", fingerprint) as running:
            return running.goes_on

    assert [goes_on(name) for name in ("first", "first", "second", "first")] == [False, True, False, False]


def test_the_time_of_interrupted_calls_counts(tmp_path: Path) -> None:
    markers = StageMarkers(RunDirectory.create(tmp_path / "run", RunConfig(), command="train"))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), markers.running("rl", "same"):
            time.sleep(0.05)
            raise KeyboardInterrupt
    with markers.running("rl", "same") as running:
        assert 0.1 <= running.elapsed_s() < 10
    with markers.running("rl", "other") as running:
        assert running.elapsed_s() < 0.05
