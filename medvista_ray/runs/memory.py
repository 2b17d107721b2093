"""How much memory a run takes: PSS (shared pages divided among their users) summed over a tree of processes.

Reads /proc only; knows neither Ray nor torch. Where there is no /proc (macOS) nothing is measured.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path

_PROC = Path("/proc")


class MemorySampler:
    """A thread that keeps the largest PSS of this process, its descendants and other roots; a context manager."""

    def __init__(self, *, interval_s: float = 5.0) -> None:
        self._interval_s = interval_s
        self._roots = {os.getpid()}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._peak_bytes: int | None = None

    def __enter__(self) -> MemorySampler:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def peak_pss_bytes(self) -> int | None:
        """Return the largest sum that was seen; None where nothing can be measured."""
        return self._peak_bytes

    def add_roots(self, pids: Iterable[int]) -> None:
        """Count these processes and their descendants too, for example Ray's."""
        self._roots = self._roots | set(pids)  # replaced, never mutated: the thread may be reading the old one

    def start(self) -> None:
        """Start sampling."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="memory-sampler", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Take one last sample and stop; may be called twice."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def sample(self) -> int | None:
        """Measure now; return the sum in bytes."""
        total = measure_pss(self._roots)
        if total is not None:
            self._peak_bytes = max(self._peak_bytes or 0, total)
        return total

    def _loop(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.sample()
        self.sample()


def measure_pss(roots: Iterable[int]) -> int | None:
    """Sum PSS over processes and all their descendants, each counted once, in bytes; None without /proc."""
    if not (_PROC / "self" / "smaps_rollup").exists():
        return None
    return sum(_pss_bytes(pid) for pid in _with_descendants(roots))


def _with_descendants(roots: Iterable[int]) -> set[int]:
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (parent := _parent_of(entry)) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    queue = list(roots)
    while queue:
        pid = queue.pop()
        if pid not in found:
            found.add(pid)
            queue.extend(children.get(pid, ()))
    return found


def _parent_of(entry: Path) -> int | None:
    try:
        stat = (entry / "stat").read_bytes()
    except OSError:  # it ended while we were looking
        return None
    # the second field is the name in brackets, which may hold blanks and brackets
    return int(stat[stat.rfind(b")") + 1 :].split()[1])


def _pss_bytes(pid: int) -> int:
    try:
        text = (_PROC / str(pid) / "smaps_rollup").read_bytes()
    except OSError:  # it has ended, or belongs to another user
        return 0
    for line in text.splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return 0
