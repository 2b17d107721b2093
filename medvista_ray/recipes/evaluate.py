"""Evaluate one policy folder on held-out items: k samples and one greedy answer each, family by family."""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from medvista_ray.assembly import (
    MIB,
    load_run_renderer,
    make_batching_engine,
    make_episode_settings,
    open_engine,
)
from medvista_ray.config.schema import RunConfig
from medvista_ray.data.demo import FAMILIES
from medvista_ray.data.sources import DRAWN_SETS, make_task_source
from medvista_ray.errors import ConfigError
from medvista_ray.evaluation.outcomes import EpisodeOutcome, read_outcomes, write_outcomes
from medvista_ray.evaluation.runner import EvaluationParts, evaluate_tasks
from medvista_ray.images.store import FolderBlobStore, LocalBlobStore
from medvista_ray.recipes.progress import Advance, Reporter
from medvista_ray.rollout.env_factory import EnvFactory, make_env_factory
from medvista_ray.rollout.episode import EpisodeRunner
from medvista_ray.rollout.group import EpisodeCount
from medvista_ray.runs.directory import RunDirectory
from medvista_ray.runs.trajectories import TrajectoryRecorder
from medvista_ray.types.protocols import PolicyClient, TaskRecord, TaskSource
from medvista_ray.types.trajectories import TrajectoryGroup

_RECORDED_ITEMS = 8  # per family, for the report


def make_held_out(config: RunConfig) -> dict[str, TaskSource]:
    """Make the held-out items, one source a family; a user's folder is one source with its own families."""
    data = config.data
    if data.source not in DRAWN_SETS:
        return {"all": _held_out(data.source, data.families, data.num_held_out, config.seed)}
    families = data.families or FAMILIES
    return {family: _remembered(data.source, (family,), data.num_held_out, config.seed) for family in families}


def _held_out(source: str, families: tuple[str, ...], num_tasks: int, seed: int) -> TaskSource:
    return make_task_source(source, "held_out", families=families, weights=(), num_tasks=num_tasks, seed=seed)


@cache
def _remembered(source: str, families: tuple[str, ...], num_tasks: int, seed: int) -> TaskSource:
    return RememberedTasks(_held_out(source, families, num_tasks, seed))


class RememberedTasks:
    """Keeps the records of a drawn set: every row of a table, sampled and greedy, asks for the same few items."""

    def __init__(self, tasks: TaskSource) -> None:
        self._tasks = tasks
        self._records: dict[int, TaskRecord] = {}

    def __len__(self) -> int:
        """Count the tasks."""
        return len(self._tasks)

    def __getitem__(self, index: int) -> TaskRecord:
        """Return the record of an index, made once."""
        if index not in self._records:
            self._records[index] = self._tasks[index]
        return self._records[index]


def run_evaluation(
    config: RunConfig, *, run: RunDirectory, row: str, reporter: Reporter
) -> tuple[list[EpisodeOutcome], float]:
    """Evaluate `policy.path` under `config.env`; outcomes are also written to the run directory."""
    started_s = time.monotonic()
    outcomes = asyncio.run(_evaluate(config, run=run, row=row, reporter=reporter))
    write_outcomes(run.outcomes_path(row), outcomes)
    return outcomes, time.monotonic() - started_s


def read_row(run: RunDirectory, row: str) -> list[EpisodeOutcome]:
    """Read the outcomes that an earlier call wrote."""
    path = run.outcomes_path(row)
    if not path.is_file():
        raise ConfigError(f"{run.root} has no evaluation {row!r}: run it first")
    return read_outcomes(path)


def _advance(advance: Advance, done: int, total: int) -> None:
    advance(done, total, "")


async def _evaluate(config: RunConfig, *, run: RunDirectory, row: str, reporter: Reporter) -> list[EpisodeOutcome]:
    # Nothing else runs in this process now: the engine takes the cores, and big batches.
    settings = config.evaluation
    config = replace(
        config,
        inference=replace(
            config.inference, num_threads=settings.num_threads, num_engines=1, max_batch=settings.max_concurrent
        ),
    )
    live = EpisodeCount()
    factory = make_env_factory(config.env, cache_bytes=config.rollout.blob_cache_mb * MIB)
    with tempfile.TemporaryDirectory(prefix="medvista-eval-") as folder:
        blobs = LocalBlobStore(FolderBlobStore(Path(folder) / "blobs"))
        engine = make_batching_engine(config, engine_id=f"eval-{row}", blobs=blobs, lockstep=live)
        try:
            await open_engine(config, engine, Path(folder))
            return await _run_families(
                config, run=run, row=row, reporter=reporter, engine=engine, blobs=blobs, factory=factory, live=live
            )
        finally:
            await engine.close()
            factory.close()


async def _run_families(
    config: RunConfig,
    *,
    run: RunDirectory,
    row: str,
    reporter: Reporter,
    engine: PolicyClient,
    blobs: LocalBlobStore,
    factory: EnvFactory,
    live: EpisodeCount,
) -> list[EpisodeOutcome]:
    renderer = load_run_renderer(config)
    outcomes: list[EpisodeOutcome] = []
    with TrajectoryRecorder(run, row, max_recorded=10_000, fresh=True) as recorder:
        kept: list[TrajectoryGroup] = []
        for greedy in (False, True):
            episode_settings = make_episode_settings(config, temperature=0.0 if greedy else 1.0)
            runner = EpisodeRunner(renderer=renderer, client=engine, blobs=blobs, settings=episode_settings)
            parts = EvaluationParts(runner=runner, factory=factory, blobs=blobs, live=live)
            for number, (family, tasks) in enumerate(make_held_out(config).items()):
                taken = 0

                def on_group(group: TrajectoryGroup, greedy: bool = greedy) -> None:
                    nonlocal taken
                    if not greedy and taken < _RECORDED_ITEMS:
                        taken += 1
                        kept.append(group)

                with reporter.bar(f"{row}: {family}{' greedy' if greedy else ''}") as advance:
                    outcomes.extend(
                        await evaluate_tasks(
                            tasks,
                            parts=parts,
                            samples_per_item=1 if greedy else config.evaluation.samples_per_item,
                            greedy=greedy,
                            max_concurrent=config.evaluation.max_concurrent,
                            epoch=number,
                            on_group=on_group,
                            on_progress=partial(_advance, advance),
                        )
                    )
        for group in kept:
            await recorder.keep(group, blobs)
    return outcomes
