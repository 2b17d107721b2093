"""The schema of `summary.json`: what a finished run says about itself. Owns names, types and bounds; computes nothing.

Written last and atomically: its presence is what makes a run finished.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata
from typing import Annotated, Any, Literal

import msgspec

from medvista_ray import __version__
from medvista_ray.errors import ConfigError
from medvista_ray.runs.directory import RunDirectory, write_atomic

ROWS = ("base", "base_tools", "sft_tools", "rl_no_tools", "rl_tools")  # the five of the demo; other recipes have others
OVERALL = "overall"  # unweighted mean of zoom, window, structure, those that were measured
INTERVAL_NOTE = "intervals are a bootstrap over items of few subjects: they do not cover new patients"

Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Count = Annotated[int, msgspec.Meta(ge=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0.0)]


class Accuracy(msgspec.Struct, frozen=True, kw_only=True):
    """How often one row answers right, on one family."""

    sampled: Share  # mean over items of the mean over samples at temperature 1
    greedy: Share | None  # None when no greedy episode was run
    low: Share  # of `sampled`, 95 %
    high: Share
    n: Count  # items
    num_sources: Count  # distinct images or volumes behind them


class WallSeconds(msgspec.Struct, frozen=True, kw_only=True):
    """Wall-clock time by stage, those of earlier calls included."""

    data: NotNegative = 0.0
    sft: NotNegative = 0.0
    rl: NotNegative = 0.0
    eval: NotNegative = 0.0
    total: NotNegative = 0.0


class Staleness(msgspec.Struct, frozen=True, kw_only=True):
    """In policy versions, over trained groups, at hand-out."""

    mean: NotNegative = 0.0
    max: Count = 0


class GroupCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How groups ended."""

    submitted: Count = 0
    consumed: Count = 0
    filtered: Count = 0
    failed: Count = 0
    stale: Count = 0
    cancelled: Count = 0


class ActorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One process that took part."""

    actor_class: str = msgspec.field(name="class")
    pid: int


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Everything in `summary.json`."""

    schema_version: Literal[1] = 1
    run_name: str
    mode: Literal["ray", "local"]
    seed: int
    num_parameters: Count
    accuracy: dict[str, dict[str, Accuracy]]  # row -> overall and each family
    valid_answers: dict[str, Share]  # row -> share of sampled episodes
    valid_tool_calls: dict[str, Share | None]  # row -> schema-valid / opened; None when none was opened
    calls_per_episode: dict[str, dict[str, NotNegative]]  # row -> family -> opened calls
    failure_classes: dict[str, dict[str, Count]] = {}  # row -> class -> episodes
    wall_s: WallSeconds
    rollout_tokens_per_s: NotNegative
    max_abs_logprob_diff: NotNegative | None  # nats, engine against learner; None when never measured
    staleness: Staleness
    groups: GroupCounts
    actors: list[ActorInfo]
    peak_pss_bytes: Count | None  # summed over all processes; None where it cannot be measured
    versions: dict[str, str]
    recoveries: dict[str, Count] = {}  # metric key -> what died, came too late or went back; empty: nothing did
    settled_groups: dict[str, Count] = {}  # RL run -> settled groups, to compare runs of equal length
    notes: tuple[str, ...] = (INTERVAL_NOTE,)


def write_summary(run: RunDirectory, summary: Summary) -> None:
    """Check and write the summary, after everything else of the run; `ValueError` for a number out of bounds."""
    data = msgspec.json.format(msgspec.json.encode(summary), indent=2)
    try:
        _check(msgspec.json.decode(data, type=Summary))
    except msgspec.ValidationError as error:
        raise ValueError(f"summary: {error}") from error
    write_atomic(run.summary_path, data + b"\n")


def read_summary(run: RunDirectory) -> Summary:
    """Read the summary of a finished run; `ConfigError` when the run is not finished or the file is not one."""
    if not run.is_finished:
        raise ConfigError(f"{run.root} holds no finished run (no summary.json): run it to its end first")
    try:
        return validate_summary(msgspec.json.decode(run.summary_path.read_bytes()))
    except (msgspec.DecodeError, ValueError) as error:
        raise ConfigError(f"{run.summary_path} is not a summary: {error}") from error


def validate_summary(content: Any) -> Summary:
    """Turn plain JSON values into a summary; `ValueError` says which key is missing or wrong."""
    try:
        summary = msgspec.convert(content, Summary)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error
    _check(summary)
    return summary


def _check(summary: Summary) -> None:
    for row, families in summary.accuracy.items():
        if OVERALL not in families:
            raise ValueError(f"accuracy.{row} has no {OVERALL!r}")
        for family, accuracy in families.items():
            if accuracy.low > accuracy.high:
                raise ValueError(f"accuracy.{row}.{family}: low {accuracy.low} is above high {accuracy.high}")
        for name in ("valid_answers", "valid_tool_calls", "calls_per_episode"):
            if row not in getattr(summary, name):
                raise ValueError(f"{name} has no row {row!r}, accuracy has")


def collect_versions(
    packages: Iterable[str] = ("numpy", "torch", "transformers", "ray", "gymnasium"),
) -> dict[str, str]:
    """Return the versions of Python, of this package and of those packages that are installed; imports none of them."""
    versions = {"python": platform.python_version(), "medvista_ray": __version__}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
