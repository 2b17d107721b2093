"""`summary.json` has the agreed keys, is refused when a number is wrong, and is written last."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from medvista_ray.config.schema import RunConfig
from medvista_ray.errors import ConfigError
from medvista_ray.runs.directory import RunDirectory
from medvista_ray.runs.summary import (
    ROWS,
    Accuracy,
    Summary,
    collect_versions,
    read_summary,
    validate_summary,
    write_summary,
)

ACCURACY = {"sampled": 0.94, "greedy": 0.96, "low": 0.9, "high": 0.97, "n": 240, "num_sources": 9}
CONTENT: dict[str, Any] = {
    "run_name": "demo",
    "mode": "ray",
    "seed": 0,
    "num_parameters": 1_760_000,
    "accuracy": {row: {"overall": dict(ACCURACY), "zoom": dict(ACCURACY)} for row in ROWS},
    "valid_answers": dict.fromkeys(ROWS, 1.0),
    "valid_tool_calls": {**dict.fromkeys(ROWS, 0.99), "base": None},
    "calls_per_episode": {row: {"zoom": 1.5} for row in ROWS},
    "wall_s": {"data": 1.0, "sft": 2.0, "rl": 3.0, "eval": 4.0, "total": 10.0},
    "rollout_tokens_per_s": 1234.5,
    "max_abs_logprob_diff": 1e-5,
    "staleness": {"mean": 0.7, "max": 2},
    "groups": {"submitted": 9, "consumed": 4, "filtered": 2, "failed": 1, "stale": 1, "cancelled": 1},
    "actors": [{"class": "EnvShardActor", "pid": 12}],
    "peak_pss_bytes": 4_000_000_000,
    "versions": {"python": "3.11"},
}


def test_every_agreed_key_stands_in_the_file(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", RunConfig(), command="train")
    write_summary(run, validate_summary(CONTENT))
    written = json.loads(run.summary_path.read_text())
    for key, value in CONTENT.items():
        assert written[key] == value, key
    assert read_summary(run) == validate_summary(CONTENT)
    assert run.is_finished


@pytest.mark.parametrize("key", CONTENT)
def test_a_missing_key_is_named(key: str) -> None:
    content = {name: value for name, value in CONTENT.items() if name != key}
    with pytest.raises(ValueError, match=key):
        validate_summary(content)


@pytest.mark.parametrize("key", ["sampled", "greedy", "low", "high", "n", "num_sources"])
def test_a_missing_accuracy_key_is_named(key: str) -> None:
    content = copy.deepcopy(CONTENT)
    del content["accuracy"]["rl_tools"]["zoom"][key]
    with pytest.raises(ValueError, match=key):
        validate_summary(content)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("mode",), "slurm", "mode"),
        (("accuracy", "base", "zoom", "sampled"), 1.2, "sampled"),
        (("accuracy", "base", "zoom", "low"), 0.99, "low 0.99 is above high"),
        (("staleness", "max"), -1, "staleness"),
        (("accuracy", "base"), {"zoom": ACCURACY}, "accuracy.base has no 'overall'"),
        (("valid_answers",), {}, "valid_answers has no row 'base'"),
        (("groups", "stale"), "two", "groups"),
        (("schema_version",), 2, "schema_version"),
    ],
)
def test_a_wrong_value_is_named(path: tuple[str, ...], value: object, message: str) -> None:
    content = copy.deepcopy(CONTENT)
    inner = content
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        validate_summary(content)


def test_a_number_that_is_none_is_never_written(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", RunConfig(), command="train")
    summary = validate_summary(CONTENT)
    broken = msgspec.structs.replace(summary, rollout_tokens_per_s=math.nan)
    with pytest.raises(ValueError, match="rollout_tokens_per_s"):
        write_summary(run, broken)
    assert not run.is_finished


def test_an_unfinished_or_damaged_run_is_one_line(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", RunConfig(), command="train")
    with pytest.raises(ConfigError, match="holds no finished run"):
        read_summary(run)
    for text in ("{", "{}", "[]"):
        run.summary_path.write_text(text)
        with pytest.raises(ConfigError, match="is not a summary") as caught:
            read_summary(run)
        assert "\n" not in str(caught.value)


def test_versions_name_what_is_installed() -> None:
    versions = collect_versions(["numpy", "no-such-package"])
    assert set(versions) == {"python", "medvista_ray", "numpy"}


def test_records_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Accuracy(**ACCURACY).sampled = 1.0  # type: ignore[misc]
    assert Summary.__struct_config__.frozen
