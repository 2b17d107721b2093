"""What a driver is made of: config sections, parts behind protocols, and what a run ends with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from medvista_ray.config.schema import BufferConfig, EnvConfig, LearnerConfig, RolloutConfig, TrainConfig
from medvista_ray.types.delivery import ProbeReport
from medvista_ray.types.protocols import BlobStore, Engines, EnvPool, LearnerGroup, ReplayBuffer
from medvista_ray.types.trajectories import TrajectoryGroup

Clock = Callable[[], float]  # monotonic seconds
Probe = Callable[[int], Awaitable[ProbeReport]]  # policy version, which all engines have loaded
ReadTools = Callable[[], Awaitable[Mapping[str, float]]]  # metrics of the tool services, by key
Sink = Callable[[TrajectoryGroup], Awaitable[None]]  # keeps one group in the run directory


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverConfig:
    """The sections that the loops read."""

    buffer: BufferConfig
    env: EnvConfig
    learner: LearnerConfig
    rollout: RolloutConfig
    train: TrainConfig
    seed: int


async def no_tools() -> Mapping[str, float]:
    """Return the metrics of a run without tool services."""
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverParts:
    """The five protocols that the loops see, and what the tool services tell. The driver closes none of them."""

    env_pool: EnvPool
    engines: Engines
    buffer: ReplayBuffer
    learner: LearnerGroup
    blobs: BlobStore
    read_tools: ReadTools = no_tools


class RunEnd(StrEnum):
    """Why a run came back without an error."""

    END_OF_DATA = "end_of_data"
    CONVERGED = "converged"  # too many groups in a row had equal rewards
    STOPPED = "stopped"  # somebody asked for it


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """How a run ended."""

    end: RunEnd
    policy_version: int
    checkpoint: Path | None  # the newest one to resume from
    summary: Mapping[str, object]  # its part of summary.json
