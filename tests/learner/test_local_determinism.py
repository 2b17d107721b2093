"""Local mode, staleness 0: one seed gives the same bytes, and a stop with a resume leaves no trace in them."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from small_runs import make_small_config, make_small_tasks

from medvista_ray.assembly import RunPaths, make_driver_config
from medvista_ray.config.schema import RunConfig
from medvista_ray.driver.checkpoint import list_checkpoints
from medvista_ray.driver.driver import Driver
from medvista_ray.driver.parts import RunEnd, RunOutcome
from medvista_ray.driver.telemetry import Telemetry
from medvista_ray.local import start_local
from medvista_ray.types.delivery import GroupWork, Receipt
from medvista_ray.types.protocols import EnvPool
from medvista_ray.types.trajectories import TrajectoryGroup
from medvista_ray.types.wire import decode_group, encode_group

NUM_TASKS = 12  # two groups a step: six versions


@dataclass(kw_only=True)
class Run:
    """What one or more lives of a run left behind."""

    outcome: RunOutcome | None = None
    groups: dict[str, bytes] = field(default_factory=dict)  # by group id, as they stand on the wire
    order: list[str] = field(default_factory=list)  # of the journal
    weights: dict[str, bytes] = field(default_factory=dict)  # files of the exported policy
    learner: dict[str, bytes] = field(default_factory=dict)  # files of the learner in the last checkpoint


def make_config(policy: Path, **changes) -> RunConfig:
    config = make_small_config(
        policy,
        num_tasks=NUM_TASKS,
        buffer={"max_staleness": 0},
        train={"record_every": 1, "max_recorded": 10_000, "probe_every": 2, "checkpoint_every": 2, "keep_last": 9},
    )
    return replace(config, seed=11, **changes)


class StoppingPool:
    """An env pool that asks for a stop when its n-th group starts."""

    def __init__(self, pool: EnvPool, stop_at: int | None) -> None:
        self._pool = pool
        self._stop_at = stop_at
        self._num_started = 0
        self.request_stop: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    async def run_group(self, work: GroupWork) -> Receipt:
        self._num_started += 1
        if self._num_started == self._stop_at:
            self.request_stop()
        return await self._pool.run_group(work)


async def live(config: RunConfig, folder: Path, run: Run, *, stop_at: int | None = None) -> Run:
    """Run to the end, or until group `stop_at` starts; go on from the newest checkpoint where there is one."""
    tasks = make_small_tasks(config)
    runtime = await start_local(config, RunPaths(blobs=folder / "blobs", weights=folder / "weights"), tasks)

    async def keep(group: TrajectoryGroup) -> None:
        data = encode_group(replace(group, incarnation=0))  # a resume counts its lives
        assert run.groups.setdefault(group.group_id, data) == data
        run.order.append(group.group_id)

    checkpoints = folder / "checkpoints"
    pool = StoppingPool(runtime.parts.env_pool, stop_at)
    driver = Driver(
        config=make_driver_config(config),
        parts=replace(runtime.parts, env_pool=pool),
        tasks=tasks,
        telemetry=Telemetry(),
        checkpoints=checkpoints,
        probe=runtime.probe,
        sink=keep,
    )
    pool.request_stop = driver.request_stop
    try:
        if list_checkpoints(checkpoints):
            await driver.resume(checkpoints)
        run.outcome = await driver.run()
        await runtime.parts.learner.export(str(folder / "model"))
    finally:
        await runtime.close()
    run.weights = read_files(folder / "model")
    assert run.outcome.checkpoint is not None
    run.learner = read_files(run.outcome.checkpoint / "learner")
    return run


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def check_same(first: Run, second: Run) -> None:
    assert first.groups.keys() == second.groups.keys()
    assert [key for key in first.groups if first.groups[key] != second.groups[key]] == []
    assert first.weights.keys() == second.weights.keys()
    assert [key for key in first.weights if first.weights[key] != second.weights[key]] == []
    assert [key for key in first.learner if first.learner[key] != second.learner.get(key)] == []


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def whole(small_policy: Path, whole_folder: Path) -> Run:
    """A run that nobody disturbs."""
    return asyncio.run(live(make_config(small_policy), whole_folder, Run()))


def check_end(run: Run, end: RunEnd) -> None:
    assert run.outcome is not None
    assert run.outcome.end is end
    if end is RunEnd.END_OF_DATA:
        assert run.outcome.policy_version == NUM_TASKS // 2
        assert run.groups.keys() == {f"0/{index}/0" for index in range(NUM_TASKS)}


async def test_one_seed_gives_the_same_bytes(small_policy: Path, tmp_path: Path, whole: Run) -> None:
    again = await live(make_config(small_policy), tmp_path / "again", Run())
    check_end(whole, RunEnd.END_OF_DATA)
    check_end(again, RunEnd.END_OF_DATA)
    assert whole.order == again.order
    check_same(whole, again)


async def test_another_seed_gives_other_bytes(small_policy: Path, tmp_path: Path, whole: Run) -> None:
    other = await live(replace(make_config(small_policy), seed=12), tmp_path / "other", Run())
    assert other.groups != whole.groups
    assert other.weights != whole.weights


def test_every_step_trained_the_weights_it_sampled_from(small_policy: Path, whole: Run) -> None:
    assert whole.weights["model.safetensors"] != (small_policy / "model.safetensors").read_bytes()
    assert whole.outcome is not None
    summary: Any = whole.outcome.summary
    assert summary["staleness"] == {"mean": 0.0, "max": 0}
    assert summary["groups"]["consumed"] == NUM_TASKS
    assert summary["max_abs_logprob_diff"] < 1e-3
    for number in range(NUM_TASKS):
        group = decode_group(whole.groups[f"0/{number}/0"])
        assert {span.policy_version for member in group.live for span in member.version_spans} == {number // 2}


@pytest.mark.parametrize("stop_at", [1, 4, 9])
async def test_a_stop_and_a_resume_leave_no_trace(small_policy: Path, tmp_path: Path, whole: Run, stop_at: int) -> None:
    """Stopped in the middle of a wave: the first group of a batch, or the second."""
    config = make_config(small_policy)
    run = await live(config, tmp_path, Run(), stop_at=stop_at)
    check_end(run, RunEnd.STOPPED)
    assert len(run.groups) < NUM_TASKS
    check_end(await live(config, tmp_path, run), RunEnd.END_OF_DATA)
    check_same(whole, run)


async def test_a_run_that_was_killed_goes_on_from_its_checkpoint(
    small_policy: Path, tmp_path: Path, whole: Run, whole_folder: Path
) -> None:
    """Only a checkpoint of the middle and the blobs are left; everything after it is done again."""
    left = [path for path in list_checkpoints(whole_folder / "checkpoints") if path.name == "step-000004"]
    assert len(left) == 1
    shutil.copytree(left[0], tmp_path / "checkpoints" / left[0].name)
    shutil.copytree(whole_folder / "blobs", tmp_path / "blobs")
    run = await live(make_config(small_policy), tmp_path, Run())
    assert run.outcome is not None
    assert run.outcome.policy_version == NUM_TASKS // 2
    assert run.groups.keys() == {f"0/{index}/0" for index in range(8, NUM_TASKS)}
    assert [key for key in run.groups if run.groups[key] != whole.groups[key]] == []
    run.groups = whole.groups
    check_same(whole, run)
