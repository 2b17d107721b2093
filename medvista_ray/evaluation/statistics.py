"""Outcomes of one row of the table -> its numbers. Pure arithmetic on records; knows no engine, no files.

`sampled` = mean over items of the mean over samples; the interval is a seeded bootstrap over items. Items of one image
are alike, so it does not cover new patients. Axes: D draws, N items of one family.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from medvista_ray.evaluation.failures import count_failures
from medvista_ray.evaluation.outcomes import EpisodeOutcome
from medvista_ray.runs.summary import OVERALL, Accuracy, Summary

OVERALL_FAMILIES = ("zoom", "window", "structure")  # `measure` is reported and has no part in it
INTERVAL = (2.5, 97.5)  # percentiles


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """The numbers of one row: one set of weights, with or without tools."""

    accuracy: Mapping[str, Accuracy]  # overall first, then the families in order of name
    valid_answers: float  # share of sampled episodes that end with an answer the question allows
    valid_tool_calls: float | None  # schema-valid / opened, sampled episodes; None when none was opened
    calls_per_episode: Mapping[str, float]  # family -> opened calls, sampled episodes
    failure_classes: Mapping[str, int]  # sampled episodes


def compute_row(outcomes: Sequence[EpisodeOutcome], *, draws: int, seed: int) -> RowResult:
    """Compute every number of one row; `ValueError` when a family has no sampled episode."""
    families = sorted({outcome.family for outcome in outcomes})
    if not families:
        raise ValueError("no outcomes: nothing was evaluated")
    sampled = [outcome for outcome in outcomes if not outcome.greedy]
    by_family = {family: [outcome for outcome in outcomes if outcome.family == family] for family in families}
    means = {family: _bootstrap_means(by_family[family], draws=draws, seed=seed) for family in families}
    accuracy = {family: compute_accuracy(by_family[family], means[family]) for family in families}
    counted = [family for family in families if family in OVERALL_FAMILIES] or families
    opened = sum(outcome.num_calls_opened for outcome in sampled)
    return RowResult(
        accuracy={
            OVERALL: _overall(
                [accuracy[family] for family in counted],
                [by_family[f] for f in counted],
                np.mean([means[family] for family in counted], axis=0),
            ),
            **accuracy,
        },
        valid_answers=fmean(outcome.is_valid_answer for outcome in sampled),
        valid_tool_calls=sum(outcome.num_calls_valid for outcome in sampled) / opened if opened else None,
        calls_per_episode={
            family: fmean(outcome.num_calls_opened for outcome in sampled if outcome.family == family)
            for family in families
        },
        failure_classes=count_failures(sampled),
    )


def compute_accuracy(outcomes: Sequence[EpisodeOutcome], means: np.ndarray) -> Accuracy:
    """Compute the accuracy of one family; `means` are its bootstrap means, float64 [D]."""
    greedy = _item_means([outcome for outcome in outcomes if outcome.greedy])
    low, high = np.percentile(means, INTERVAL)
    items = _item_means([outcome for outcome in outcomes if not outcome.greedy])
    return Accuracy(
        sampled=fmean(items.values()),
        greedy=fmean(greedy.values()) if greedy else None,
        low=float(low),
        high=float(high),
        n=len(items),
        num_sources=_count_sources(outcomes),
    )


def _overall(
    accuracies: Sequence[Accuracy], outcomes: Sequence[Sequence[EpisodeOutcome]], means: np.ndarray
) -> Accuracy:
    """Average families without weights, draw by draw."""
    greedy = [accuracy.greedy for accuracy in accuracies if accuracy.greedy is not None]
    low, high = np.percentile(means, INTERVAL)
    return Accuracy(
        sampled=fmean(accuracy.sampled for accuracy in accuracies),
        greedy=fmean(greedy) if len(greedy) == len(accuracies) else None,
        low=float(low),
        high=float(high),
        n=sum(accuracy.n for accuracy in accuracies),
        num_sources=_count_sources([outcome for family in outcomes for outcome in family]),
    )


def _bootstrap_means(outcomes: Sequence[EpisodeOutcome], *, draws: int, seed: int) -> np.ndarray:
    """Resample the items of one family; float64 [D]. The draws depend on the family alone, not on the others."""
    family = outcomes[0].family
    values = np.array(list(_item_means([outcome for outcome in outcomes if not outcome.greedy]).values()))  # [N]
    if not len(values):
        raise ValueError(f"family {family!r} has no sampled episode")
    random = np.random.default_rng([seed, zlib.crc32(family.encode())])
    return np.array([values[random.integers(len(values), size=len(values))].mean() for _ in range(draws)])


def _item_means(outcomes: Sequence[EpisodeOutcome]) -> dict[str, float]:
    """Average the samples of each item; items in order of their id, so that the order of episodes changes nothing."""
    by_item: dict[str, list[bool]] = {}
    for outcome in outcomes:
        by_item.setdefault(outcome.item_id, []).append(outcome.correct)
    return {item: fmean(by_item[item]) for item in sorted(by_item)}


def _count_sources(outcomes: Sequence[EpisodeOutcome]) -> int:
    return len({outcome.source for outcome in outcomes})


def rows_of_summary(summary: Summary) -> dict[str, RowResult]:
    """Return the rows of a finished run, in the order of its summary."""
    return {
        row: RowResult(
            accuracy=accuracy,
            valid_answers=summary.valid_answers[row],
            valid_tool_calls=summary.valid_tool_calls[row],
            calls_per_episode=summary.calls_per_episode[row],
            failure_classes=summary.failure_classes.get(row, {}),
        )
        for row, accuracy in summary.accuracy.items()
    }
