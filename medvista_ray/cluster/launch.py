"""Composition root no. 2: the parts of a run as Ray actors, wired like `local.py` wires them in one process.

    calling process: driver, probe            blobs, buffer: beside the driver, they share its run directory
    shards, engines, ranks: wherever there is room; weights and checkpoints need a folder that all nodes see

The driver alone recreates shards, engines and ranks (`max_restarts=0`). Ray restarts the blob store, whose files are
its journal, and the tool services, which have no state; not the buffer, whose journal is in memory: when that process
dies, the run ends and goes on from its newest checkpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from medvista_ray.assembly import MIB, RunPaths, Runtime, find_services, make_probe
from medvista_ray.cluster.actors import (
    ActorHome,
    BlobStoreActor,
    EngineActor,
    EnvShardActor,
    LearnerActor,
    ReplayBufferActor,
)
from medvista_ray.cluster.connection import RayConnection, connect
from medvista_ray.cluster.engines import RemoteEngine, RemoteEngines
from medvista_ray.cluster.env_pool import RemoteEnvPool, ShardHandle
from medvista_ray.cluster.faults import answer_of, life_of
from medvista_ray.cluster.learner_group import RankHandle, RemoteLearnerGroup
from medvista_ray.cluster.plan import check_placement, make_plan, total_of
from medvista_ray.cluster.stores import RemoteBlobStore, RemoteReplayBuffer
from medvista_ray.cluster.tool_services import RemoteToolService, ToolServiceActor, read_service_metrics
from medvista_ray.config.schema import RunConfig
from medvista_ray.driver.parts import DriverParts
from medvista_ray.errors import (
    EngineDiedError,
    LearnerDiedError,
    MedVistaError,
    PlacementError,
    RunFailedError,
    ShardDiedError,
)
from medvista_ray.images.store import FolderBlobStore
from medvista_ray.types.protocols import TaskSource

_MAX_CALLS = 1000  # at once in one async actor; what waits there for its turn must not hold up a cancel or a swap


async def start_cluster(config: RunConfig, paths: RunPaths, tasks: TaskSource) -> Runtime:
    """Wire a run on Ray; call it inside the event loop that will drive the run.

    Raises:
        ConfigError: there is no Ray at `cluster.address`, or an actor finds a setting that cannot be.
        PlacementError: the cluster has no room; says which resource is missing.
    """
    config, paths = _absolute(config, paths)
    FolderBlobStore(paths.blobs)  # says here, in words, when the folder cannot be made
    plan = make_plan(config)
    async with AsyncExitStack() as undo:
        connection = connect(config.cluster, num_cpus=total_of(plan, "CPU"), num_gpus=total_of(plan, "GPU"))
        undo.callback(connection.close)
        await check_placement(plan, timeout_s=config.cluster.start_timeout_s)
        launcher = Launcher(config=config, paths=paths, connection=connection)
        parts = await launcher.start_parts(undo)
        services = {name: RemoteToolService(actor) for name, actor in launcher.services.items()}
        probe, probe_envs = make_probe(config, parts=parts, tasks=tasks, services=services)
        undo.callback(probe_envs.close)
        everything = undo.pop_all()
    return Runtime(
        mode="ray",
        parts=parts,
        probe=probe,
        actors=tuple(home.record for home in launcher.homes),
        extra_pids=launcher.local_pids,
        close=everything.aclose,
    )


def _absolute(config: RunConfig, paths: RunPaths) -> tuple[RunConfig, RunPaths]:
    """Resolve relative paths: an actor may have another working directory."""
    policy = Path(config.policy.path)
    if policy.exists():
        config = replace(config, policy=replace(config.policy, path=str(policy.resolve())))
    return config, RunPaths(blobs=paths.blobs.resolve(), weights=paths.weights.resolve())


@dataclass(kw_only=True, eq=False)
class Launcher:
    """Makes every actor of a run, its options beside it; recoveries come back here."""

    config: RunConfig
    paths: RunPaths
    connection: RayConnection
    homes: tuple[ActorHome, ...] = ()
    services: Mapping[str, Any] = field(default_factory=dict)  # name of tool -> actor
    _blobs: Any = None
    _buffer: Any = None

    @property
    def local_pids(self) -> tuple[int, ...]:
        """Return the actors on the machine of the driver."""
        return tuple(home.record.pid for home in self.homes if home.node_id == self.connection.node_id)

    async def start_parts(self, undo: AsyncExitStack) -> DriverParts:
        """Start everything side by side; `undo` learns at once how to end it."""
        rollout, inference = self.config.rollout, self.config.inference
        self._blobs = self.make_blob_store()
        undo.callback(ray.kill, self._blobs)
        self._buffer = self.make_buffer()
        undo.callback(ray.kill, self._buffer)
        self.services = {name: self.make_service(spec) for name, spec in find_services(self.config).items()}
        for service in self.services.values():
            undo.callback(ray.kill, service)
        learner = RemoteLearnerGroup(self.start_ranks)
        undo.push_async_callback(learner.close)
        engines = RemoteEngines(self.make_engine, num_engines=inference.num_engines)
        undo.push_async_callback(engines.close)
        pool = RemoteEnvPool(self.start_shard, num_shards=rollout.num_shards, slots_per_shard=rollout.slots_per_shard)
        undo.push_async_callback(pool.close)
        first = await _together(
            self._started(self._blobs.start.remote(), name="the blob store", died=RunFailedError),
            self._started(self._buffer.start.remote(self.config), name="the replay buffer", died=RunFailedError),
            engines.wait_started(),
            learner.start(),
            pool.start(),
            *(
                self._started(service.start.remote(), name=f"the service of {name}", died=RunFailedError)
                for name, service in self.services.items()
            ),
        )
        self.homes = (first[0], first[1], *first[2], *learner.homes, *pool.homes, *first[5:])
        return DriverParts(
            env_pool=pool,
            engines=engines,
            buffer=RemoteReplayBuffer(self._buffer),
            learner=learner,
            blobs=RemoteBlobStore(self._blobs, cache_bytes=self.config.rollout.blob_cache_mb * MIB),
            read_tools=partial(read_service_metrics, self.services),
        )

    # --- the actors
    def make_blob_store(self) -> Any:
        """Make the blob store, on the driver's node; its methods run in threads."""
        options = self._options(max_restarts=-1, max_task_retries=-1, max_concurrency=8, beside_driver=True)
        return ray.remote(BlobStoreActor).options(**options).remote(self.paths.blobs)

    def make_buffer(self) -> Any:
        """Make the replay buffer, on the driver's node."""
        options = self._options(max_task_retries=3, beside_driver=True)
        return ray.remote(ReplayBufferActor).options(**options).remote()

    def make_service(self, spec: str) -> Any:
        """Make the service of one tool; the process with its weights starts with the first call."""
        env = self.config.env
        options = self._options(num_cpus=self.config.cluster.service_cpus, max_restarts=-1)
        actor = ray.remote(ToolServiceActor).options(**options)
        return actor.remote(spec, limit_s=env.tool_timeout_s, num_threads=env.service_threads)

    async def start_shard(self, name: str) -> ShardHandle:
        """Start one env shard."""
        options = self._options(num_cpus=self.config.cluster.shard_cpus)
        actor = ray.remote(EnvShardActor).options(**options).remote()
        with _killed_on_failure(actor):
            call = actor.start.remote(self.config, blobs=self._blobs, buffer=self._buffer, services=self.services)
            home = await self._started(call, name=name, died=ShardDiedError)
        return ShardHandle(name=name, actor=actor, home=home, life=life_of(actor))

    def make_engine(self, engine_id: str) -> RemoteEngine:
        """Start one engine, without waiting for it."""
        cluster = self.config.cluster
        options = self._options(num_cpus=cluster.engine_cpus, num_gpus=cluster.engine_gpus)
        actor = ray.remote(EngineActor).options(**options).remote()
        call = actor.start.remote(self.config, engine_id=engine_id, blobs=self._blobs)
        return RemoteEngine(engine_id, actor, start=lambda: self._started(call, name=engine_id, died=EngineDiedError))

    async def start_ranks(self) -> list[RankHandle]:
        """Start every rank of the learner; they meet on the node of rank 0."""
        cluster, world_size = self.config.cluster, self.config.learner.world_size
        options = self._options(num_cpus=cluster.learner_cpus, num_gpus=cluster.learner_gpus)
        actors = [ray.remote(LearnerActor).options(**options).remote() for _ in range(world_size)]
        with _killed_on_failure(*actors):
            init_method = ""
            if world_size > 1:
                call = actors[0].meeting_point.remote()
                init_method = await self._started(call, name="learner rank 0", died=LearnerDiedError)
            starts = [self._start_rank(rank, actor, init_method) for rank, actor in enumerate(actors)]
            return list(await _together(*starts))

    async def _start_rank(self, rank: int, actor: Any, init_method: str) -> RankHandle:
        name = f"learner rank {rank}"
        call = actor.start.remote(
            self.config,
            rank=rank,
            init_method=init_method,
            buffer=self._buffer,
            blobs=self._blobs,
            weights_folder=self.paths.weights,
        )
        home = await self._started(call, name=name, died=LearnerDiedError)
        return RankHandle(name=name, actor=actor, home=home, life=life_of(actor))

    # --- what they share
    def _options(
        self,
        *,
        num_cpus: float = 0.0,
        num_gpus: float = 0.0,
        max_restarts: int = 0,
        max_task_retries: int = 0,
        max_concurrency: int = _MAX_CALLS,
        beside_driver: bool = False,
    ) -> dict[str, Any]:
        options: dict[str, Any] = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "max_restarts": max_restarts,
            "max_task_retries": max_task_retries,
            "max_concurrency": max_concurrency,
        }
        if beside_driver:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(self.connection.node_id, soft=False)
        if self.connection.worker_env:
            options["runtime_env"] = {"env_vars": dict(self.connection.worker_env)}
        return options

    async def _started(self, call: Any, *, name: str, died: type[MedVistaError]) -> Any:
        """Await the first call of an actor; `PlacementError` when its process does not come up in time."""
        timeout_s = self.config.cluster.start_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await answer_of(call, who=name, died=died)
        except TimeoutError:
            raise PlacementError(
                f"{name} has not started within cluster.start_timeout_s = {timeout_s:g} s: no node has room for it, "
                "or its machine is too busy"
            ) from None


@contextmanager
def _killed_on_failure(*actors: Any) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for actor in actors:
            ray.kill(actor)
        raise


async def _together(*starts: Coroutine[Any, Any, Any]) -> list[Any]:
    """Await all; when one fails the others are cancelled, and have ended, before its error goes on."""
    tasks = [asyncio.ensure_future(start) for start in starts]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
