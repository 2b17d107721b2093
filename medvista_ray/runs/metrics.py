"""`metrics.jsonl` and TensorBoard events: one line per step, keys `stage/what/unit`. Knows no learner and no buffer.

A label separates the parts of one run (`sft`, `rl_tools`, `rl_no_tools`). After a resume the steps behind the
checkpoint are written again: a step that is not behind the last one says so in the file (`rewind_to`), and the reader
leaves the first try out.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from medvista_ray.errors import MissingPackageError
from medvista_ray.runs.directory import RunDirectory, check_label

if TYPE_CHECKING:
    from pathlib import Path

_KEY = re.compile(r"[a-z0-9_]+(/[^/\s]([^/\r\n\t]*[^/\s])?){2,}")  # parts may be names of families and rewards


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricPoint:
    """The metrics of one step."""

    label: str
    step: int
    time_s: float  # wall clock, seconds since 1970
    values: Mapping[str, float] = field(default_factory=dict)  # NaN where a value was not finite


class MetricsWriter:
    """Appends the metrics of one part of a run; a context manager. `fresh` leaves out what this label wrote before."""

    def __init__(self, run: RunDirectory, label: str, *, fresh: bool = False, tensorboard: bool = True) -> None:
        self._label = check_label(label)
        if fresh:
            shutil.rmtree(run.tensorboard_path(label), ignore_errors=True)
        _cut_torn_line(run.metrics_path)
        self._last_step = max((point.step for point in read_metrics(run, label)), default=-1) if not fresh else -1
        self._file = run.metrics_path.open("a", encoding="utf-8")
        self._events = _EventWriter(run.tensorboard_path(label)) if tensorboard else None
        if fresh and run.metrics_path.stat().st_size:
            self.rewind(-1)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append the metrics of one step; `ValueError` for a key that is not `stage/what/unit`."""
        numbers = {check_key(key): float(value) for key, value in values.items()}
        if step <= self._last_step:
            self.rewind(step - 1)
        self._last_step = int(step)
        now_s = time.time()
        finite = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        self._append({"label": self._label, "step": int(step), "time_s": round(now_s, 3), "values": finite})
        if self._events is not None:
            self._events.write(int(step), now_s, numbers)

    def rewind(self, step: int) -> None:
        """Say that the run goes on from this step: what was written behind it no longer counts."""
        self._append({"label": self._label, "rewind_to": int(step)})

    def close(self) -> None:
        """Flush and close both files."""
        self._file.close()
        if self._events is not None:
            self._events.close()

    def _append(self, line: Mapping[str, object]) -> None:
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()


def check_key(key: str) -> str:
    """Return a metric key; `ValueError` if it is not `stage/what/unit`."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"a metric key is stage/what/unit, got {key!r}")
    return key


def read_metrics(run: RunDirectory, label: str | None = None) -> list[MetricPoint]:
    """Read the points of one label, or of all, without those that a resume made anew; a torn last line is left out."""
    points: list[MetricPoint] = []
    for line in _iter_lines(run.metrics_path):
        if label is not None and line["label"] != label:
            continue
        if "rewind_to" in line:
            points = [point for point in points if point.label != line["label"] or point.step <= line["rewind_to"]]
            continue
        values = {key: math.nan if value is None else value for key, value in line["values"].items()}
        points.append(MetricPoint(label=line["label"], step=line["step"], time_s=line["time_s"], values=values))
    return points


def _iter_lines(path: Path) -> Iterator[dict]:  # type: ignore[type-arg]
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for text in file:
            if text.endswith("\n"):
                yield json.loads(text)


def _cut_torn_line(path: Path) -> None:
    """Cut a last line that a killed process did not finish."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        data = file.read()
        file.truncate(data.rfind(b"\n") + 1)


class _EventWriter:
    """TensorBoard events through the `tensorboard` package alone: neither torch nor TensorFlow."""

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise MissingPackageError("tensorboard is not installed: pip install 'medvista-ray[train]'") from error
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventFileWriter(str(folder))

    def write(self, step: int, time_s: float, values: Mapping[str, float]) -> None:
        """Add one event with every finite value."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        finite = [Summary.Value(tag=key, simple_value=value) for key, value in values.items() if math.isfinite(value)]
        self._writer.add_event(Event(wall_time=time_s, step=step, summary=Summary(value=finite)))

    def close(self) -> None:
        """Write what is queued."""
        self._writer.close()
