"""Build the plain parts of a run from its config. Both composition roots call these; neither wires anything twice.

Knows every layer below the roots; starts no loop, no process and no Ray.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvista_ray.buffer.replay_buffer import ReplayBuffer
from medvista_ray.config.schema import RunConfig
from medvista_ray.driver.parts import DriverConfig, DriverParts, Probe
from medvista_ray.errors import EngineDiedError
from medvista_ray.policy.loading import resolve_policy_path
from medvista_ray.rendering.renderer import QwenRenderer, load_renderer
from medvista_ray.rollout.batching import make_batch_cutter
from medvista_ray.rollout.env_factory import EnvFactory, make_env_factory, tool_specs_of
from medvista_ray.rollout.episode import EpisodeRunner, EpisodeSettings
from medvista_ray.rollout.group import EpisodeCount
from medvista_ray.rollout.probe import NUM_SEQUENCES, max_logprob_difference, sample_probe
from medvista_ray.rollout.shard import EnvShard
from medvista_ray.tools.registry import service_specs
from medvista_ray.tools.runner import ToolExecutor, make_services
from medvista_ray.tools.service import ToolService
from medvista_ray.types.delivery import ProbeReport
from medvista_ray.types.protocols import BlobStore, PolicyClient, TaskSource
from medvista_ray.types.protocols import ReplayBuffer as AsyncReplayBuffer
from medvista_ray.types.sampling import SamplingSpec

if TYPE_CHECKING:
    from medvista_ray.inference.batcher import BatchingEngine
    from medvista_ray.learner.process_group import RankAddress
    from medvista_ray.learner.rank import LearnerRank

MIB = 2**20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorRecord:
    """One process that takes part in a run, for summary.json."""

    name: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Runtime:
    """A wired run: what the driver sees, and what its recipe must close."""

    mode: str  # ray | local
    parts: DriverParts
    probe: Probe
    actors: tuple[ActorRecord, ...]
    extra_pids: tuple[int, ...]  # processes outside this one's family whose memory counts
    close: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPaths:
    """Where the parts of a run keep their files."""

    blobs: Path
    weights: Path


StartRuntime = Callable[[RunConfig, RunPaths, TaskSource], Awaitable[Runtime]]


def make_driver_config(config: RunConfig) -> DriverConfig:
    """Pick the sections that the driver's loops read."""
    return DriverConfig(
        buffer=config.buffer,
        env=config.env,
        learner=config.learner,
        rollout=config.rollout,
        train=config.train,
        seed=config.seed,
    )


def make_replay_buffer(config: RunConfig) -> ReplayBuffer:
    """Make the buffer with the advantages of the configured loss."""
    cut = make_batch_cutter(normalize_std=config.learner.loss != "dr_grpo")
    return ReplayBuffer(config.buffer, cut_batch=cut)


def load_run_renderer(config: RunConfig) -> QwenRenderer:
    """Load the renderer of the configured policy."""
    return load_renderer(resolve_policy_path(config.policy.path))


def make_sampling(config: RunConfig, renderer: QwenRenderer) -> SamplingSpec:
    """Make the distribution that engine and learner share."""
    return SamplingSpec(
        temperature=config.rollout.temperature,
        banned_token_ids=renderer.banned_token_ids,
        stop_token_ids=renderer.stop_token_ids,
    )


def make_episode_settings(config: RunConfig, *, temperature: float | None = None) -> EpisodeSettings:
    """Make the limits of every episode; `temperature` overrides the training one (0 is greedy)."""
    return EpisodeSettings(
        max_action_tokens=config.env.max_action_tokens,
        max_context_tokens=config.env.max_context_tokens,
        timeout_s=config.env.episode_timeout_s,
        temperature=config.rollout.temperature if temperature is None else temperature,
        seed=config.seed,
    )


def make_shard(
    config: RunConfig,
    *,
    num_slots: int,
    router: Any,
    blobs: BlobStore,
    buffer: AsyncReplayBuffer,
    services: Mapping[str, ToolExecutor],
    live: EpisodeCount | None = None,
) -> EnvShard:
    """Make one env shard; `router` is the policy client of its episodes, `services` run the resident tools."""
    factory = make_env_factory(config.env, cache_bytes=config.rollout.blob_cache_mb * MIB, services=services)
    runner = EpisodeRunner(
        renderer=load_run_renderer(config), client=router, blobs=blobs, settings=make_episode_settings(config)
    )
    return EnvShard(
        num_slots=num_slots,
        runner=runner,
        router=router,
        make_env=factory.make,
        blobs=blobs,
        buffer=buffer,
        cache=factory.cache,
        live=live,
        close_tools=factory.close,
    )


def find_services(config: RunConfig) -> dict[str, str]:
    """Return the specs of the tools that a run offers and that are services, by the names that calls use."""
    return service_specs(tool_specs_of(config.env))


def make_local_services(config: RunConfig) -> dict[str, ToolService]:
    """Make the tool services of one process; to be closed."""
    specs = tuple(find_services(config).values())
    return make_services(specs, timeout_s=config.env.tool_timeout_s, num_threads=config.env.service_threads)


def make_router(config: RunConfig) -> Any:
    """Make the router of one shard, without engines until `set_engines`."""
    from medvista_ray.inference.router import Router

    return Router(no_engine_wait_s=config.env.group_timeout_s)


def make_batching_engine(
    config: RunConfig, *, engine_id: str, blobs: BlobStore, lockstep: Callable[[], int] | None = None
) -> BatchingEngine:
    """Make one engine, closed until its first swap."""
    from medvista_ray.inference.batcher import BatchingEngine, make_engine_executor
    from medvista_ray.inference.transformers_engine import TransformersEngine
    from medvista_ray.policy.loading import load_policy

    policy = load_policy(config.policy.path, dtype=config.policy.dtype, device=config.policy.device)
    return BatchingEngine(
        TransformersEngine(policy),
        blobs=blobs,
        max_batch=config.inference.max_batch,
        lockstep=lockstep,
        executor=make_engine_executor(config.inference.num_threads),
        engine_id=engine_id,
    )


def make_learner_rank(config: RunConfig, *, address: RankAddress | None = None) -> LearnerRank:
    """Make one learner rank."""
    from medvista_ray.learner.rank import LearnerRank

    return LearnerRank(
        config.learner,
        policy_config=config.policy,
        sampling=make_sampling(config, load_run_renderer(config)),
        address=address,
    )


def make_probe(
    config: RunConfig,
    *,
    parts: DriverParts,
    tasks: TaskSource,
    services: Mapping[str, ToolExecutor],
    live: EpisodeCount | None = None,
) -> tuple[Probe, EnvFactory]:
    """Make the parity probe, which measures every serving engine, and the envs it uses (to be closed)."""
    factory = make_env_factory(config.env, cache_bytes=16 * MIB, services=services)
    renderer = load_run_renderer(config)
    records = [tasks[index % len(tasks)] for index in range(NUM_SEQUENCES)]
    counter = live or EpisodeCount()

    async def probe_one(engine: PolicyClient, policy_version: int) -> float:
        counter.add(NUM_SEQUENCES)
        try:
            samples = await sample_probe(
                records,
                make_env=factory.make,
                renderer=renderer,
                client=engine,
                blobs=parts.blobs,
                temperature=config.rollout.temperature,
                seed=config.seed + policy_version,
            )
        finally:
            counter.add(-NUM_SEQUENCES)
        return max_logprob_difference(samples, await parts.learner.compute_logprobs(samples))

    async def probe(policy_version: int) -> ProbeReport:
        diffs: dict[str, float] = {}
        for engine in parts.engines.engine_set().engines:
            try:
                diffs[engine.engine_id] = await probe_one(engine, policy_version)
            except EngineDiedError as error:  # its successor starts from verified weights
                _log.warning("the probe of version %d skips a dead engine: %s", policy_version, error)
        return ProbeReport(diffs=diffs)

    return probe, factory


async def open_engine(config: RunConfig, engine: BatchingEngine, folder: Path) -> None:
    """Load the weights of `policy.path` into one engine, verified like any update."""
    from medvista_ray.policy.loading import load_policy
    from medvista_ray.policy.weights import named_weights, write_weights
    from medvista_ray.types.sampling import WeightUpdate

    policy = load_policy(config.policy.path, dtype=config.policy.dtype, device="cpu")
    path = folder / "weights.safetensors"
    digest = write_weights(named_weights(policy.model), path)
    await engine.stage(WeightUpdate(policy_version=0, path=str(path), digest=digest))
    await engine.swap(0)
