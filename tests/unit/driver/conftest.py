"""One small world per test: the real buffer between scripted shards, engines and learner."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from medvista_ray.buffer.local import LocalReplayBuffer
from medvista_ray.buffer.replay_buffer import ReplayBuffer
from medvista_ray.config.schema import BufferConfig, EnvConfig, LearnerConfig, RolloutConfig, TrainConfig
from medvista_ray.driver.driver import Driver
from medvista_ray.driver.parts import DriverConfig, DriverParts, RunOutcome
from medvista_ray.driver.telemetry import Progress, Telemetry
from medvista_ray.rollout.batching import make_batch_cutter
from medvista_ray.testing.blobs import MemoryBlobStore
from medvista_ray.testing.inference import ScriptedEngines
from medvista_ray.testing.learner import ScriptedLearner
from medvista_ray.testing.records import ListTaskSource
from medvista_ray.testing.rollout import RewardScript, ScriptedEnvPool, different_rewards
from medvista_ray.types.delivery import BufferStatus, GroupWork
from medvista_ray.types.trajectories import TrajectoryGroup

logging.getLogger("medvista_ray").setLevel(logging.DEBUG)


@dataclass(kw_only=True)
class World:
    """Every part of a run. `reborn` makes a new process of it: same folder, nothing else."""

    folder: Path
    num_tasks: int = 12
    buffer_config: dict[str, Any] = field(default_factory=dict)
    train_config: dict[str, Any] = field(default_factory=dict)
    group_timeout_s: float = 30.0
    rewards: RewardScript = different_rewards
    delay_s: Callable[[GroupWork], float] | float = 0.0
    step_s: float = 0.0
    world_size: int = 1
    probe: Any = None
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        sections = {"groups_per_step": 2, "max_staleness": 1, "max_concurrent": 4, **self.buffer_config}
        self.config = DriverConfig(
            buffer=BufferConfig(**sections),
            env=EnvConfig(group_timeout_s=self.group_timeout_s),
            learner=LearnerConfig(world_size=self.world_size),
            rollout=RolloutConfig(group_size=2),
            train=TrainConfig(**{"checkpoint_every": 2, "no_progress_s": 20.0, "record_every": 2, **self.train_config}),
            seed=7,
        )
        plain = ReplayBuffer(self.config.buffer, cut_batch=make_batch_cutter(normalize_std=True))
        self.buffer = LocalReplayBuffer(plain, self.clock)
        self.engines = ScriptedEngines(num_engines=2)
        self.env_pool = ScriptedEnvPool(
            self.buffer,
            policy_version=lambda: self.engines.policy_version or 0,
            rewards=self.rewards,
            delay_s=self.delay_s,
        )
        self.learner = ScriptedLearner(self.buffer, world_size=self.world_size, step_s=self.step_s)
        self.blobs = MemoryBlobStore()
        self.tasks = ListTaskSource.of_length(self.num_tasks)
        self.metrics: dict[int, dict[str, float]] = {}
        self.progress: list[Progress] = []
        self.recorded: list[TrajectoryGroup] = []
        self.telemetry = Telemetry(write=self._write, on_progress=self.progress.append, clock=self.clock)
        self.driver = self.make_driver()

    def _write(self, step: int, metrics: Any) -> None:
        self.metrics[step] = dict(metrics)

    async def _sink(self, group: TrajectoryGroup) -> None:
        self.recorded.append(group)

    async def _read_tools(self) -> dict[str, float]:
        return {"tools/segment_calls/count": 1.0}

    def make_driver(self) -> Driver:
        return Driver(
            config=self.config,
            parts=DriverParts(
                env_pool=self.env_pool,
                engines=self.engines,
                buffer=self.buffer,
                learner=self.learner,
                blobs=self.blobs,
                read_tools=self._read_tools,
            ),
            tasks=self.tasks,
            telemetry=self.telemetry,
            checkpoints=self.folder / "checkpoints",
            clock=self.clock,
            probe=self.probe,
            sink=self._sink,
        )

    async def run(self) -> RunOutcome:
        return await self.driver.run()

    async def check_ledger(self) -> BufferStatus:
        """Every submitted group is outstanding or has ended, exactly once."""
        status = await self.buffer.status()
        counts = dict(status.counts)
        assert counts.pop("submitted") == sum(counts.values())
        return status

    @property
    def trained(self) -> list[str]:
        """Group ids in the history of the learner's weights."""
        return [group_id for batch in self.learner.history for group_id in batch]


@pytest.fixture
def make_world(tmp_path: Path) -> Callable[..., World]:
    def make(**changes: Any) -> World:
        return World(**{"folder": tmp_path, **changes})

    return make
