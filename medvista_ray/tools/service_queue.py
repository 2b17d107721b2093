"""The calls that wait for a service, with their deadlines, and what the service counts. Knows no process and no tool.

A call's clock stands still while the service starts, until the time of its episode is over: loading weights is
nobody's call.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from medvista_ray.tools.execution import Execution, Request

_LATENCIES = 1000  # latest calls that the percentiles look at


@dataclass(kw_only=True, eq=False, slots=True)
class PendingCall:
    """One call until it is answered."""

    request: Request
    submitted_s: float  # all times: seconds of `time.monotonic`
    deadline_s: float
    attempt: int = 0
    is_abandoned: bool = False  # nobody waits for it any more
    future: Future[Execution] = field(default_factory=Future)

    @property
    def is_over(self) -> bool:
        """Return whether it needs no work."""
        return self.is_abandoned or self.future.done()

    def pause_since(self, since_s: float, now_s: float) -> None:
        """Put the deadline off by the time since the service began to start, or since the call came."""
        deadline_s = self.deadline_s + max(0.0, now_s - max(since_s, self.submitted_s))
        self.deadline_s = min(deadline_s, self.request.expires_s)


class CallQueue:
    """First in, first out; hands out batches. Safe between threads."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._calls: deque[PendingCall] = deque()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._calls)

    def put(self, pending: PendingCall) -> bool:
        """Add a call at the end; False when the queue is closed."""
        with self._condition:
            if self._is_closed:
                return False
            self._calls.append(pending)
            self._condition.notify_all()
            return True

    def put_back(self, calls: Iterable[PendingCall]) -> bool:
        """Add calls at the front, in their order; False when the queue is closed."""
        with self._condition:
            if self._is_closed:
                return False
            self._calls.extendleft(reversed(list(calls)))
            return True

    def take(self, max_batch: int, *, wait_s: float) -> list[PendingCall]:
        """Wait for a call, then at most `wait_s` for others to join it; an empty list when the queue is closed.

        A call that has lost its process once comes alone, so that it cannot take others with it again.
        """
        with self._condition:
            self._condition.wait_for(lambda: self._is_closed or self._calls)
            if wait_s > 0 and self._calls and self._calls[0].attempt == 0:
                self._condition.wait_for(lambda: self._is_closed or len(self._calls) >= max_batch, timeout=wait_s)
            batch: list[PendingCall] = []
            while self._calls and len(batch) < max_batch and not (batch and self._calls[0].attempt > 0):
                batch.append(self._calls.popleft())
                if batch[0].attempt > 0:
                    break
            return batch

    def take_overdue(self, now_s: float) -> list[PendingCall]:
        """Remove and return the calls whose deadline has passed."""
        with self._condition:
            overdue = [pending for pending in self._calls if pending.deadline_s <= now_s]
            for pending in overdue:
                self._calls.remove(pending)
            return overdue

    def pause_since(self, since_s: float, now_s: float) -> None:
        """Put every deadline off."""
        with self._condition:
            for pending in self._calls:
                pending.pause_since(since_s, now_s)

    def close(self) -> list[PendingCall]:
        """Take no more calls; return those that were waiting."""
        with self._condition:
            self._is_closed = True
            waiting = list(self._calls)
            self._calls.clear()
            self._condition.notify_all()
            return waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceMetrics:
    """What a service has done so far."""

    num_calls: int  # answered, failures included
    num_batches: int
    mean_batch: float  # calls in a batch; 0.0 before the first
    max_batch: int
    queue_depth: int  # calls that wait now
    latency_p50_s: float  # of the latest calls, from submission to answer, start-up included; 0.0 before the first
    latency_p90_s: float
    num_restarts: int
    failures: Mapping[str, int]  # kind -> calls

    def named(self, tool: str) -> dict[str, float]:
        """Return it as metrics of a run, `tools/<name>_<what>/<unit>`."""
        values = {
            "calls/count": self.num_calls,
            "failures/count": sum(self.failures.values()),
            "batch_size/mean": self.mean_batch,
            "queue_depth/calls": self.queue_depth,
            "latency_s/p50": self.latency_p50_s,
            "latency_s/p90": self.latency_p90_s,
            "restarts/count": self.num_restarts,
        }
        return {f"tools/{tool}_{key}": float(value) for key, value in values.items()}


class ServiceCounters:
    """Counts calls and batches. Safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_calls = self._num_batches = self._num_batched = self._max_batch = 0
        self._failures: Counter[str] = Counter()
        self._latencies_s: deque[float] = deque(maxlen=_LATENCIES)

    def add_batch(self, num_calls: int) -> None:
        """Count a batch that was sent."""
        with self._lock:
            self._num_batches += 1
            self._num_batched += num_calls
            self._max_batch = max(self._max_batch, num_calls)

    def add_answer(self, pending: PendingCall, execution: Execution) -> None:
        """Count an answered call."""
        with self._lock:
            self._num_calls += 1
            self._latencies_s.append(time.monotonic() - pending.submitted_s)
            if execution.failure is not None:
                self._failures[execution.failure.value] += 1

    def read(self, *, queue_depth: int, num_restarts: int) -> ServiceMetrics:
        """Return the counts."""
        with self._lock:
            latencies = sorted(self._latencies_s)
            return ServiceMetrics(
                num_calls=self._num_calls,
                num_batches=self._num_batches,
                mean_batch=self._num_batched / self._num_batches if self._num_batches else 0.0,
                max_batch=self._max_batch,
                queue_depth=queue_depth,
                latency_p50_s=_nearest_rank(latencies, 0.5),
                latency_p90_s=_nearest_rank(latencies, 0.9),
                num_restarts=num_restarts,
                failures=dict(self._failures),
            )


def _nearest_rank(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
