"""Counts what a run does: metrics of every step, progress for people, the driver's part of summary.json.

Knows receipts, reports and ledger counters; knows neither files nor screens, which it is handed as callables.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from types import MappingProxyType

from medvista_ray.types.delivery import (
    END_STATES,
    SETTLED_STATES,
    BufferStatus,
    CommitResult,
    GroupState,
    Receipt,
    TrainReport,
)

_RECENT_GROUPS = 64  # groups in the reward mean that people see


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a progress bar shows."""

    num_settled: int
    num_tasks: int  # over all epochs
    policy_version: int
    num_running: int
    num_ready: int
    reward_mean: float  # of the last groups, live members; 0.0 before the first
    staleness_mean: float  # versions, over all trained groups
    tokens_per_s: float  # sampled tokens, over the run
    waits: Mapping[str, str]  # loop -> reason


@dataclass(slots=True, kw_only=True)
class _Window:
    """Receipts since the last train step."""

    rewards: list[float] = field(default_factory=list)
    num_groups: int = 0
    num_equal: int = 0
    num_broken: int = 0
    num_superseded: int = 0
    num_action_tokens: int = 0
    num_tokens: int = 0
    metrics: dict[str, list[float]] = field(default_factory=dict)
    start_s: float = 0.0


def _no_write(step: int, metrics: Mapping[str, float]) -> None:
    """Drop the metrics of a step."""


def _no_progress(progress: Progress) -> None:
    """Show nothing."""


# Counters of what died, came too late or went back: in every line of metrics.jsonl, and in summary.json if not zero.
RECOVERIES = (
    "env/recovered/shards",
    "engine/recovered/engines",
    "engine/quarantined/engines",
    "engine/refused/publishes",
    "driver/died/attempts",
    "driver/deadline/groups",
    "driver/resumes/count",
    "buffer/expired/groups",
    "learner/lease_expired/steps",
)


class Telemetry:
    """Counters of one run; they survive a resume through `state` and `restore`."""

    def __init__(
        self,
        *,
        write: Callable[[int, Mapping[str, float]], None] = _no_write,
        on_progress: Callable[[Progress], None] = _no_progress,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._on_progress = on_progress
        self._clock = clock
        self._counters: dict[str, float] = {}
        self._window = _Window()
        self._recent: deque[float] = deque(maxlen=_RECENT_GROUPS)
        self._started_s: float | None = None
        self._elapsed_before_s = 0.0

    def start(self) -> None:
        """Start the clock of the rollout rate."""
        if self._started_s is None:
            self._started_s = self._clock()
            self._window.start_s = self._started_s

    def count(self, key: str, amount: float = 1.0) -> None:
        """Add to a counter; keys are `stage/what/unit`."""
        self._counters[key] = self._counters.get(key, 0.0) + amount

    def keep_max(self, key: str, value: float) -> None:
        """Raise a counter to a value."""
        self._counters[key] = max(self._counters.get(key, value), value)

    def on_receipt(self, receipt: Receipt) -> None:
        """Count a group that a shard has committed."""
        window = self._window
        if receipt.result is not CommitResult.ACCEPTED:
            window.num_superseded += 1
            self.count("rollout/superseded/groups")
            return
        window.num_groups += 1
        window.num_broken += receipt.num_broken
        window.num_tokens += receipt.num_tokens
        window.num_action_tokens += receipt.num_action_tokens
        self.count("rollout/tokens/tokens", receipt.num_tokens)
        self.count("rollout/action_tokens/tokens", receipt.num_action_tokens)
        self.count("rollout/broken/members", receipt.num_broken)
        window.num_equal += len(set(receipt.rewards)) < 2
        window.rewards.extend(receipt.rewards)
        if receipt.rewards:
            self._recent.append(fmean(receipt.rewards))
        for key, value in receipt.metrics.items():
            window.metrics.setdefault(key, []).append(value)

    def on_step(
        self, report: TrainReport, status: BufferStatus, *, tools: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        """Write the metrics of one train step; `status` is the ledger after its publish, `tools` what services tell."""
        self.count("buffer/staleness/sum", sum(report.staleness))
        self.count("buffer/trained/groups", len(report.staleness))
        for staleness in report.staleness:
            self.keep_max("buffer/staleness/max", staleness)
        metrics = self._window_metrics()
        metrics |= {
            "buffer/staleness/mean": fmean(report.staleness) if report.staleness else 0.0,
            "buffer/staleness/max": float(max(report.staleness, default=0)),
            "buffer/batch/groups": float(len(report.group_ids)),
        }
        metrics |= {f"buffer/{name}/groups": float(count) for name, count in status.counts.items()}
        metrics |= {key: self._counters.get(key, 0.0) for key in RECOVERIES}
        if report.max_abs_logprob_diff is not None:
            metrics["learner/logprob_diff/max"] = report.max_abs_logprob_diff
            self.keep_max("learner/logprob_diff/max", report.max_abs_logprob_diff)
        metrics |= report.metrics
        metrics |= tools
        self._window = _Window(start_s=self._clock())
        self._write(report.train_from_version + 1, metrics)

    def _window_metrics(self) -> dict[str, float]:
        window, elapsed_s = self._window, max(self._clock() - self._window.start_s, 1e-9)
        metrics = {key: fmean(values) for key, values in window.metrics.items()}
        metrics |= {
            "rollout/groups/count": float(window.num_groups),
            "rollout/broken/members": float(window.num_broken),
            "rollout/superseded/groups": float(window.num_superseded),
            "rollout/action_tokens/per_s": window.num_action_tokens / elapsed_s,
        }
        if window.rewards:
            metrics["rollout/reward/mean"] = fmean(window.rewards)
            metrics["rollout/equal_rewards/share"] = window.num_equal / window.num_groups
        return metrics

    def on_parity(self, max_abs_diff: float) -> None:
        """Keep the largest difference that a probe has seen, in nats."""
        self.count("learner/probes/count")
        self.keep_max("learner/logprob_diff/max", max_abs_diff)

    def show(self, status: BufferStatus, *, num_tasks: int, waits: Mapping[str, str]) -> None:
        """Hand the state of the run to whoever shows it."""
        self._on_progress(
            Progress(
                num_settled=num_settled(status),
                num_tasks=num_tasks,
                policy_version=status.policy_version,
                num_running=status.counts.get(GroupState.RUNNING, 0),
                num_ready=status.counts.get(GroupState.READY, 0),
                reward_mean=fmean(self._recent) if self._recent else 0.0,
                staleness_mean=self._staleness_mean(),
                tokens_per_s=self._tokens_per_s(),
                waits=dict(waits),
            )
        )

    def counters(self) -> dict[str, float]:
        """Return every counter, by key."""
        return dict(self._counters)

    def summary(self, status: BufferStatus) -> dict[str, object]:
        """Return the driver's part of summary.json."""
        names = ("submitted", *(state.value for state in END_STATES))
        return {
            "groups": {name: status.counts.get(name, 0) for name in names},
            "staleness": {"mean": self._staleness_mean(), "max": int(self._counters.get("buffer/staleness/max", 0))},
            "rollout_tokens_per_s": self._tokens_per_s(),
            "max_abs_logprob_diff": self._counters.get("learner/logprob_diff/max"),  # None: never measured
            "recoveries": {key: int(self._counters[key]) for key in RECOVERIES if self._counters.get(key)},
        }

    def state(self) -> dict[str, float]:
        """Return what a checkpoint keeps."""
        return {**self._counters, "driver/elapsed/s": self._elapsed_s()}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from what a checkpoint has kept."""
        self._counters = {key: value for key, value in state.items() if key != "driver/elapsed/s"}
        self._elapsed_before_s = state.get("driver/elapsed/s", 0.0)
        self._started_s = None
        self._window = _Window()

    def _elapsed_s(self) -> float:
        running_s = 0.0 if self._started_s is None else self._clock() - self._started_s
        return self._elapsed_before_s + running_s

    def _tokens_per_s(self) -> float:
        elapsed_s = self._elapsed_s()
        return self._counters.get("rollout/action_tokens/tokens", 0.0) / elapsed_s if elapsed_s > 0 else 0.0

    def _staleness_mean(self) -> float:
        num_groups = self._counters.get("buffer/trained/groups", 0.0)
        return self._counters.get("buffer/staleness/sum", 0.0) / num_groups if num_groups else 0.0


def num_settled(status: BufferStatus) -> int:
    """Count the settled groups: consumed, filtered or failed."""
    return sum(status.counts.get(state, 0) for state in SETTLED_STATES)
