"""Runs in which processes are killed: shards, an engine, the blob store, a rank. Every task is trained exactly once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
from small_runs import make_small_config, make_small_tasks

from medvista_ray.assembly import RunPaths, Runtime, make_driver_config
from medvista_ray.config.schema import RunConfig
from medvista_ray.driver.driver import Driver
from medvista_ray.driver.parts import RunEnd, RunOutcome
from medvista_ray.driver.telemetry import Telemetry
from medvista_ray.errors import ConfigError, PlacementError, RunFailedError
from medvista_ray.types.delivery import BufferStatus, TrainReport
from medvista_ray.types.trajectories import parse_group_id

pytest.importorskip("ray")
pytestmark = pytest.mark.usefixtures("ray_here")


class Notes(Telemetry):
    """Telemetry that also keeps which groups made each version; a resume writes over what it withdraws."""

    def __init__(self) -> None:
        super().__init__()
        self.trained: dict[int, tuple[str, ...]] = {}

    def on_step(
        self, report: TrainReport, status: BufferStatus, *, tools: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        super().on_step(report, status, tools=tools)
        self.trained[report.train_from_version + 1] = report.group_ids


class Run:
    """A run on real processes."""

    def __init__(self, config: RunConfig, runtime: Runtime, folder: Path) -> None:
        self.config = config
        self.runtime = runtime
        self.notes = Notes()
        self.driver = Driver(
            config=make_driver_config(config),
            parts=runtime.parts,
            tasks=make_small_tasks(config),
            telemetry=self.notes,
            checkpoints=folder / "checkpoints",
            probe=runtime.probe,
        )

    def pids(self, name: str) -> list[int]:
        """Return the processes of an actor class, of those that ran at the start."""
        return [actor.pid for actor in self.runtime.actors if actor.name == name]

    async def kill(self, pid: int, *, after: int, when: Callable[[], bool] = lambda: True) -> None:
        """Kill a process as soon as so many groups are consumed, others run, and it is time."""
        while True:
            counts = (await self.runtime.parts.buffer.status()).counts
            if counts["consumed"] >= after and counts["running"] > 0 and when():
                os.kill(pid, signal.SIGKILL)
                return
            await asyncio.sleep(0.01)

    async def check_trained_once(self, outcome: RunOutcome) -> None:
        """Nothing is lost and nothing doubled: every group has ended once, every task was trained once."""
        assert outcome.end is RunEnd.END_OF_DATA
        counts = dict((await self.runtime.parts.buffer.status()).counts)
        assert counts.pop("submitted") == sum(counts.values())
        assert counts["consumed"] == self.config.data.num_tasks
        assert sum(counts[state] for state in ("reserved", "running", "ready", "leased", "acked", "failed")) == 0
        assert sorted(self.notes.trained) == list(range(1, outcome.policy_version + 1))
        trained = Counter(parse_group_id(name)[1] for names in self.notes.trained.values() for name in names)
        assert trained == Counter(range(self.config.data.num_tasks))


@asynccontextmanager
async def started(config: RunConfig, folder: Path) -> AsyncIterator[Run]:
    from medvista_ray.cluster.launch import start_cluster

    paths = RunPaths(blobs=folder / "blobs", weights=folder / "weights")
    runtime = await start_cluster(config, paths, make_small_tasks(config))
    try:
        yield Run(config, runtime, folder)
    finally:
        await runtime.close()


async def test_a_run_survives_one_kill_of_each_kind_of_process(small_policy: Path, tmp_path: Path) -> None:
    config = make_small_config(small_policy, num_tasks=24, world_size=2)
    async with started(config, tmp_path) as run:
        actors = run.runtime.actors
        assert len({actor.pid for actor in actors}) == len(actors) == 7
        assert set(run.runtime.extra_pids) == {actor.pid for actor in actors}
        driving = asyncio.create_task(run.driver.run())
        pool, shard = run.runtime.parts.env_pool, run.pids("EnvShardActor")[0]
        await run.kill(shard, after=2, when=lambda: pool.loads.get(shard, 0) > 0)
        await run.kill(run.pids("EngineActor")[0], after=6)
        await run.kill(run.pids("BlobStoreActor")[0], after=10)
        await run.kill(run.pids("LearnerActor")[1], after=12)
        await run.check_trained_once(await driving)
        counters = run.notes.counters()
        assert counters["driver/died/attempts"] >= 1
        assert counters["env/recovered/shards"] == 1
        assert counters["engine/recovered/engines"] >= 1
        assert counters["driver/resumes/count"] == 1
        assert counters["learner/logprob_diff/max"] < 1e-3

        os.kill(run.pids("ReplayBufferActor")[0], signal.SIGKILL)
        with pytest.raises(RunFailedError, match="the replay buffer: The actor is dead"):
            await run.runtime.parts.buffer.status()


async def test_a_plan_without_room_is_refused_in_words(small_policy: Path, tmp_path: Path) -> None:
    config = make_small_config(small_policy, cluster={"learner_gpus": 1.0, "start_timeout_s": 0.2})
    with pytest.raises(PlacementError, match="GPU: 1 needed, 0 free of 0: 1 x LearnerActor"):
        async with started(config, tmp_path):
            pass


async def test_a_setting_that_only_an_actor_can_judge_is_a_config_error(small_policy: Path, tmp_path: Path) -> None:
    config = make_small_config(small_policy)
    config = replace(config, env=replace(config.env, target="small_runs:NoSuchEnv"))
    with pytest.raises(ConfigError, match="has no class 'NoSuchEnv'"):
        async with started(config, tmp_path):
            pass
