"""One reinforcement-learning run over a `Runtime`, local or on a cluster: wire, drive, export, close.

    config + tasks --> start(runtime) --> Driver.run --> checkpoints, metrics, recordings, a policy folder

A second call goes on from the newest checkpoint. Ctrl-C asks the driver to stop at the next border.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvista_ray.assembly import ActorRecord, RunPaths, StartRuntime, make_driver_config
from medvista_ray.config.schema import RunConfig
from medvista_ray.data.sources import make_task_source
from medvista_ray.driver.checkpoint import list_checkpoints
from medvista_ray.driver.driver import Driver
from medvista_ray.driver.parts import RunEnd, RunOutcome
from medvista_ray.driver.telemetry import Progress, Telemetry
from medvista_ray.errors import StoppedError
from medvista_ray.recipes.progress import Advance, Reporter
from medvista_ray.runs.directory import RunDirectory
from medvista_ray.runs.memory import MemorySampler
from medvista_ray.runs.metrics import MetricsWriter
from medvista_ray.runs.trajectories import TrajectoryRecorder
from medvista_ray.types.protocols import TaskSource
from medvista_ray.types.trajectories import TrajectoryGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class RLResult:
    """What one run leaves for the summary."""

    model_path: Path
    summary: dict[str, Any]  # groups, staleness, rollout_tokens_per_s, max_abs_logprob_diff
    actors: tuple[ActorRecord, ...]


def make_training_tasks(config: RunConfig) -> TaskSource:
    """Make the training split that the config names."""
    data = config.data
    return make_task_source(
        data.source,
        "train",
        families=data.families,
        weights=data.weights,
        num_tasks=data.num_tasks,
        seed=config.seed,
    )


def run_rl(
    config: RunConfig,
    *,
    run: RunDirectory,
    label: str,
    start: StartRuntime,
    reporter: Reporter,
    memory: MemorySampler | None = None,
) -> RLResult:
    """Train until the tasks end; `StoppedError` after Ctrl-C, with a checkpoint to go on from.

    Its text says what was reached; the caller adds how to go on.
    """
    return asyncio.run(_run(config, run=run, label=label, start=start, reporter=reporter, memory=memory))


async def _run(
    config: RunConfig,
    *,
    run: RunDirectory,
    label: str,
    start: StartRuntime,
    reporter: Reporter,
    memory: MemorySampler | None,
) -> RLResult:
    tasks = make_training_tasks(config)
    paths = RunPaths(blobs=run.store_path / label, weights=run.root / "weights" / label)
    checkpoints = run.checkpoints_path(label)
    goes_on = bool(list_checkpoints(checkpoints))
    runtime = await start(config, paths, tasks)
    if memory is not None:
        memory.add_roots(runtime.extra_pids)
    try:
        with (
            MetricsWriter(run, label, fresh=not goes_on) as metrics,
            TrajectoryRecorder(run, label, max_recorded=config.train.max_recorded, fresh=not goes_on) as recorder,
            reporter.bar(label) as advance,
        ):

            async def keep(group: TrajectoryGroup) -> None:
                await recorder.keep(group, runtime.parts.blobs)

            driver = Driver(
                config=make_driver_config(config),
                parts=runtime.parts,
                tasks=tasks,
                telemetry=Telemetry(write=metrics.write, on_progress=_show(advance)),
                checkpoints=checkpoints,
                probe=runtime.probe,
                sink=keep,
            )
            if goes_on:
                await driver.resume(checkpoints)
            with _stop_on_signals(driver):
                outcome = await driver.run()
        model_path = await _export(outcome, runtime.parts.learner, run.model_path(label))
    finally:
        await runtime.close()
    for folder in (paths.blobs, paths.weights):
        shutil.rmtree(folder, ignore_errors=True)  # the recording keeps copies of what it shows
    return RLResult(
        model_path=model_path,
        summary=dict(outcome.summary),
        actors=runtime.actors,
    )


async def _export(outcome: RunOutcome, learner: Any, folder: Path) -> Path:
    if outcome.end is RunEnd.STOPPED:
        checkpoint = outcome.checkpoint.name if outcome.checkpoint else "none yet"
        raise StoppedError(f"stopped at policy version {outcome.policy_version} (checkpoint: {checkpoint})")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    await learner.export(str(partial))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def _show(advance: Advance) -> Any:
    def on_progress(progress: Progress) -> None:
        note = (
            f"reward {progress.reward_mean:+.2f}  version {progress.policy_version}  "
            f"staleness {progress.staleness_mean:.2f}  {progress.tokens_per_s:.0f} tok/s"
        )
        advance(progress.num_settled, progress.num_tasks, note)

    return on_progress


@contextmanager
def _stop_on_signals(driver: Driver) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM ask for a stop; a second Ctrl-C interrupts at once."""
    loop = asyncio.get_running_loop()

    def ask() -> None:
        driver.request_stop()
        loop.remove_signal_handler(signal.SIGINT)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
