"""Supervised fine-tuning: make or read cold-start trajectories, filter them, train, export a policy folder."""

from __future__ import annotations

import asyncio
import multiprocessing
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType

import numpy as np

from medvista_ray.assembly import MIB, load_run_renderer, make_episode_settings
from medvista_ray.coldstart.generate import (
    ColdStartData,
    Planner,
    generate_cold_start,
    join_cold_start,
    keep_well_formed,
    load_planner,
    make_answer_planner,
    make_expert_planner,
)
from medvista_ray.config.schema import RunConfig
from medvista_ray.errors import DataError
from medvista_ray.recipes.progress import Reporter
from medvista_ray.recipes.rl import make_training_tasks
from medvista_ray.rollout.env_factory import make_env_factory
from medvista_ray.runs.directory import RunDirectory
from medvista_ray.runs.metrics import MetricsWriter
from medvista_ray.runs.trajectories import read_blob, read_trajectories, shown_images

_STATE_EVERY = 100  # updates between two saved states
_PIECE = 250  # cold-start episodes that one worker plays at a time


def make_cold_start(config: RunConfig, *, reporter: Reporter, title: str) -> ColdStartData:
    """Play the scripted expert over training tasks (bare answers when no tools are offered), or read a recording."""
    if config.coldstart.source != "expert":
        return _read_recording(config.coldstart.source)
    count = config.coldstart.num_trajectories
    pieces = [range(start, min(start + _PIECE, count)) for start in range(0, count, _PIECE)]
    parts: list[ColdStartData] = []
    # Drawing and encoding images is plain Python work: processes, spawned since torch may have threads already.
    workers = min(config.sft.num_threads, len(pieces))
    with (
        ProcessPoolExecutor(max_workers=workers, mp_context=multiprocessing.get_context("spawn")) as pool,
        reporter.bar(title) as advance,
    ):
        for part in pool.map(partial(_play_piece, config), pieces):
            parts.append(part)
            advance(min(len(parts) * _PIECE, count), count, "")
    return join_cold_start(parts)


def _play_piece(config: RunConfig, indices: range) -> ColdStartData:
    """Play one piece of the cold start; the same whatever process does it."""
    data = replace(config.data, num_tasks=config.coldstart.num_trajectories)
    tasks = make_training_tasks(replace(config, data=data, seed=config.seed + 1))
    factory = make_env_factory(config.env, cache_bytes=config.rollout.blob_cache_mb * MIB)
    try:
        return asyncio.run(
            generate_cold_start(
                tasks,
                planner=_make_planner(config),
                factory=factory,
                renderer=load_run_renderer(config),
                settings=make_episode_settings(config),
                indices=indices,
                seed=config.seed,
            )
        )
    finally:
        factory.close()


def _make_planner(config: RunConfig) -> Planner:
    if config.coldstart.expert:
        return load_planner(config.coldstart.expert)
    if not config.env.offer_tools:
        return make_answer_planner()
    return make_expert_planner(
        right_share=config.coldstart.right_share, second_look_share=config.coldstart.second_look_share
    )


def check_expert(config: RunConfig) -> None:
    """Plan one episode before anything is written; `DataError` when the expert cannot."""
    if config.coldstart.source == "expert":
        _make_planner(config)(make_training_tasks(config)[0], np.random.default_rng(config.seed))


def run_sft(config: RunConfig, *, run: RunDirectory, label: str, reporter: Reporter) -> Path:
    """Fine-tune `policy.path` and export it; returns the policy folder.

    A second call goes on from the newest saved state.
    """
    from medvista_ray.learner.sft import SFTStep, SupervisedTrainer

    data = make_cold_start(config, reporter=reporter, title=f"{label}: trajectories")
    trainer = SupervisedTrainer(
        config.sft,
        policy_config=config.policy,
        trajectories=data.trajectories,
        images=data.images,
        seed=config.seed,
    )
    state = run.checkpoints_path(f"{label}-sft")
    goes_on = (state / "newest").is_dir()
    if goes_on:
        trainer.load_state(state / "newest")
    with (
        MetricsWriter(run, f"{label}-sft", fresh=not goes_on) as metrics,
        reporter.bar(f"{label}: SFT") as advance,
        _interrupt_after_a_step() as is_interrupted,
    ):

        def on_step(step: SFTStep) -> None:
            advance(step.step, step.steps, f"loss {step.loss:.3f}")
            metrics.write(step.step, {"sft/loss/nats": step.loss, "sft/lr/rate": step.lr})
            if step.step % _STATE_EVERY == 0 or is_interrupted():
                _save_state(trainer.save_state, state)
            if is_interrupted():
                raise KeyboardInterrupt

        trainer.run(on_step=on_step)
    folder = run.model_path(label)
    shutil.rmtree(folder, ignore_errors=True)
    trainer.export(folder)
    shutil.rmtree(state, ignore_errors=True)
    return folder


@contextmanager
def _interrupt_after_a_step() -> Iterator[Callable[[], bool]]:
    """Note the first Ctrl-C instead of raising, so that the step under way can be saved; a second one raises."""
    noted = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        if noted.is_set():
            raise KeyboardInterrupt
        noted.set()

    if threading.current_thread() is not threading.main_thread():  # only the main thread hears signals
        yield noted.is_set
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _save_state(save: Callable[[Path], None], folder: Path) -> None:
    """Write a state beside the newest and put it in its place; a crash leaves one of the two whole."""
    partial, newest, old = folder / "partial", folder / "newest", folder / "old"
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    save(partial)
    if newest.exists():
        newest.rename(old)
    partial.rename(newest)
    shutil.rmtree(old, ignore_errors=True)


def _read_recording(source: str) -> ColdStartData:
    """Read `RUN_DIRECTORY:LABEL`, as `medvista` records trajectories."""
    root, _, label = source.rpartition(":")
    if not root:
        raise DataError(f"coldstart.source={source!r}: give 'expert' or RUN_DIRECTORY:LABEL of a recording")
    run = RunDirectory.open(root)
    groups = list(read_trajectories(run, label))
    kept = list(keep_well_formed([member for group in groups for member in group.trajectories]))
    if not kept:
        raise DataError(
            f"coldstart.source={source!r} holds no well-formed, right trajectory; labels: {run.recorded_labels()}"
        )
    images = {digest: read_blob(run, image) for group in groups for digest, image in shown_images(group).items()}
    return ColdStartData(
        trajectories=kept, images=images, num_dropped=sum(len(group.trajectories) for group in groups) - len(kept)
    )
