"""Ctrl-C in a terminal hits every process of the foreground group: the driver stops in order, and nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray")
_HERE = Path(__file__).parent


def descendants_of(root: int) -> set[int]:
    """Return every living process below one."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found, queue = set(), [root]
    while queue:
        above = queue.pop()
        below = [pid for pid, parent in parents.items() if parent == above]
        found.update(below)
        queue += below
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_an_interrupt_stops_in_order_and_leaves_no_process(small_policy: Path, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment["PYTHONPATH"] = str(_HERE.parent)
    errors = tmp_path / "stderr.txt"
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, str(_HERE / "interrupted_run.py"), str(small_policy), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment,
            start_new_session=True,
        ) as run,
    ):
        assert run.stdout is not None
        try:
            line = run.stdout.readline()
            assert line, errors.read_text()
            below = descendants_of(run.pid)
            assert set(json.loads(line)["actors"]) <= below
            os.killpg(run.pid, signal.SIGINT)  # as a terminal does
            last = run.stdout.read().strip().splitlines()[-1]
            assert run.wait(timeout=60) == 0
        finally:
            run.kill()
    end = json.loads(last)
    assert end["end"] == "stopped"
    assert (Path(end["checkpoint"]) / "learner").is_dir()  # written after the interrupt: no rank had died of it
    assert "died" not in errors.read_text()
    deadline = time.monotonic() + 10
    while (left := {pid for pid in below if is_running(pid)}) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
