"""Composition root no. 1: a whole run in one process, without Ray. For debugging, tests and small machines.

The learner step and the engine run in a thread each; everything else shares one event loop. With `max_staleness` 0 the
engine runs in lock-step with the episodes, so the same seed gives the same bytes.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from medvista_ray.assembly import (
    MIB,
    ActorRecord,
    RunPaths,
    Runtime,
    make_batching_engine,
    make_learner_rank,
    make_local_services,
    make_probe,
    make_replay_buffer,
    make_router,
    make_shard,
)
from medvista_ray.buffer.local import LocalReplayBuffer
from medvista_ray.config.schema import RunConfig
from medvista_ray.driver.parts import DriverParts
from medvista_ray.images.store import FolderBlobStore, LocalBlobStore
from medvista_ray.rollout.group import EpisodeCount
from medvista_ray.rollout.shard import EnvShard
from medvista_ray.tools.service import ToolService
from medvista_ray.types.delivery import GroupWork, Receipt
from medvista_ray.types.protocols import EngineSet, TaskSource

if TYPE_CHECKING:
    from medvista_ray.learner.rank import LearnerRank


class LocalEnvPool:
    """One shard in this process, with the slots of all."""

    def __init__(self, shard: EnvShard, *, num_slots: int) -> None:
        self._shard = shard
        self._num_slots = num_slots

    @property
    def num_slots(self) -> int:
        """Groups that can run at once."""
        return self._num_slots

    async def run_group(self, work: GroupWork) -> Receipt:
        """Run one group and commit it."""
        return await self._shard.run_group(work)

    async def cancel_group(self, group_id: str) -> None:
        """Stop a running group."""
        await self._shard.cancel_group(group_id)

    async def set_engines(self, engines: EngineSet) -> None:
        """Tell the shard which engines serve."""
        self._shard.set_engines(engines)

    async def recover(self) -> int:
        """Recreate nothing: this shard lives as long as the process."""
        return 0

    async def close(self) -> None:
        """Stop the shard."""
        await self._shard.close()


def _make_rank_in_its_thread(config: RunConfig) -> LearnerRank:
    """Make the rank after fixing the thread count: another number of threads adds in another order, to other bytes."""
    import torch

    torch.set_num_threads(config.learner.num_threads)
    return make_learner_rank(config)


async def _read_tools(services: Mapping[str, ToolService]) -> dict[str, float]:
    """Return what the tool services of this process have done, by metric."""
    return {key: value for name, service in services.items() for key, value in service.metrics().named(name).items()}


async def start_local(config: RunConfig, paths: RunPaths, tasks: TaskSource) -> Runtime:
    """Wire a run in this process; call it inside the event loop that will drive the run."""
    from medvista_ray.inference.local_engines import LocalEngines
    from medvista_ray.learner.local_group import LocalLearnerGroup

    live = EpisodeCount()
    cache_bytes = config.rollout.blob_cache_mb * MIB
    blobs = LocalBlobStore(FolderBlobStore(paths.blobs), cache_bytes=cache_bytes)
    buffer = LocalReplayBuffer(make_replay_buffer(config), time.monotonic)
    lockstep = live if config.buffer.max_staleness == 0 else None
    engines = LocalEngines(
        lambda engine_id: make_batching_engine(config, engine_id=engine_id, blobs=blobs, lockstep=lockstep),
        num_engines=config.inference.num_engines,
    )
    learner = LocalLearnerGroup(
        lambda: _make_rank_in_its_thread(config), buffer=buffer, blobs=blobs, weights_folder=paths.weights
    )
    num_slots = config.rollout.num_shards * config.rollout.slots_per_shard
    services = make_local_services(config)
    shard = make_shard(
        config,
        num_slots=num_slots,
        router=make_router(config),
        blobs=blobs,
        buffer=buffer,
        services=services,
        live=live,
    )

    parts = DriverParts(
        env_pool=LocalEnvPool(shard, num_slots=num_slots),
        engines=engines,
        buffer=buffer,
        learner=learner,
        blobs=blobs,
        read_tools=lambda: _read_tools(services),
    )
    probe, probe_envs = make_probe(config, parts=parts, tasks=tasks, services=services, live=live)

    async def close() -> None:
        await parts.env_pool.close()
        await engines.close()
        await learner.close()
        probe_envs.close()
        for service in services.values():
            await asyncio.to_thread(service.close)

    return Runtime(
        mode="local",
        parts=parts,
        probe=probe,
        actors=(ActorRecord(name="LocalRuntime", pid=os.getpid()),),
        extra_pids=(),
        close=close,
    )
