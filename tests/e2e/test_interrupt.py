"""Ctrl-C in the middle of a training run: it stops, nothing is left behind, and --resume goes on to the end."""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import MEDVISTA, make_environment
from processes import alive, family_of

from medvista_ray.driver.checkpoint import list_checkpoints
from medvista_ray.runs.directory import RunDirectory
from medvista_ray.runs.metrics import read_metrics
from medvista_ray.runs.trajectories import read_trajectories

NUM_TASKS = 40
STOP_S = 10.0  # from Ctrl-C to the end of the process
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts `medvista` in a process group of its own; what is left at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str | Path) -> subprocess.Popen[str]:
        env = make_environment({"PYTHONPATH": str(Path(__file__).parent)})
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                [MEDVISTA, *map(str, arguments)], cwd=tmp_path, env=env, stdout=log, stderr=log, start_new_session=True
            )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until(is_true: Callable[[], bool], process: subprocess.Popen[str], log: Path, *, timeout_s: float) -> None:
    """Wait for something that a running process does."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def train_steps(run: Path) -> list[int]:
    """Return the steps that metrics.jsonl has, while somebody may be writing it."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}") and "learner/" in line]


@pytest.mark.parametrize("mode", ["local", "ray"])
def test_ctrl_c_leaves_a_checkpoint_and_resume_finishes(start: Start, small_config: Path, tmp_path: Path, mode: str):
    run, log = tmp_path / "run", tmp_path / "log"
    settings = (
        "env.target=length_env:LengthEnv",
        f"mode={mode}",
        f"data.num_tasks={NUM_TASKS}",
        "train.record_every=1",
    )
    process = start("train", small_config, "--out", run, *settings)
    wait_until(lambda: len(train_steps(run)) >= 3, process, log, timeout_s=180)
    family = family_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    process.wait(timeout=STOP_S)
    assert process.returncode == 130, log.read_text()
    assert "Traceback" not in log.read_text()
    assert "--resume" in log.read_text()
    time.sleep(0.5)
    assert not alive(family)
    steps = len(train_steps(run))
    assert list_checkpoints(run / "checkpoints" / "rl")
    assert not (run / "summary.json").exists()
    assert 0 < steps < NUM_TASKS // 2, "it was to be stopped in the middle"

    process = start("train", "--resume", run)
    process.wait(timeout=240)
    assert process.returncode == 0, log.read_text()
    consumed = assert_settled_once(run)
    points = read_metrics(RunDirectory.open(run), "rl")
    assert [point.step for point in points] == list(range(1, len(points) + 1))
    assert sum(point.values["buffer/batch/groups"] for point in points) == consumed


def assert_settled_once(run: Path) -> int:
    """Check that every task has one end, and its groups are recorded; return how many groups were trained."""
    groups = json.loads((run / "summary.json").read_text())["groups"]
    ends = {state: count for state, count in groups.items() if state != "submitted"}
    assert groups["submitted"] == sum(ends.values())
    assert groups["consumed"] + groups["filtered"] + groups["failed"] == NUM_TASKS
    recorded = Counter(group.group_id for group in read_trajectories(RunDirectory.open(run), "rl"))
    assert {group_id.split("/")[1] for group_id in recorded} == {str(index) for index in range(NUM_TASKS)}
    return int(groups["consumed"])
