"""`medvista sft`, `train` and `eval` on a user's own folder and data: one stage, one run directory each."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path

from medvista_ray.assembly import StartRuntime
from medvista_ray.config.schema import RunConfig
from medvista_ray.driver.checkpoint import list_checkpoints
from medvista_ray.errors import ConfigError, StoppedError
from medvista_ray.evaluation.statistics import rows_of_summary
from medvista_ray.evaluation.table import format_markdown
from medvista_ray.recipes.evaluate import run_evaluation
from medvista_ray.recipes.inputs import compute_input_digest
from medvista_ray.recipes.progress import Reporter
from medvista_ray.recipes.rl import run_rl
from medvista_ray.recipes.sft import check_expert, run_sft
from medvista_ray.recipes.summary import make_summary
from medvista_ray.runs.directory import RunDirectory
from medvista_ray.runs.memory import MemorySampler
from medvista_ray.runs.stages import StageMarkers, compute_fingerprint
from medvista_ray.runs.summary import write_summary

LABEL = "rl"
SFT_LABEL = "sft"
_SFT_KEYS = ("policy", "data", "env", "sft", "coldstart", "seed")


def run_fine_tuning(config: RunConfig, folder: Path, *, fresh: bool = False) -> Path:
    """Fine-tune and write the summary; return the policy folder.

    An interrupted call under the same settings goes on from its newest state.

    Raises:
        ConfigError: there is a finished run in the folder and `fresh` was not asked for.
    """
    check_expert(config)
    found = RunDirectory(folder)
    if found.model_path(SFT_LABEL).is_dir() and not fresh:
        raise ConfigError(f"out: {folder} holds a finished run: give another run_name or --out, or --fresh")
    run = RunDirectory.create(folder, config, command="sft", fresh=fresh)
    fingerprint = compute_fingerprint(config, _SFT_KEYS, after=[compute_input_digest(config)])
    with StageMarkers(run).running(SFT_LABEL, fingerprint) as running, MemorySampler() as memory:
        if not running.goes_on:
            shutil.rmtree(run.checkpoints_path(f"{SFT_LABEL}-sft"), ignore_errors=True)
        model = run_sft(config, run=run, label=SFT_LABEL, reporter=Reporter())
    results = {SFT_LABEL: {"wall_s": running.elapsed_s(), "peak_pss_bytes": memory.peak_pss_bytes}}
    write_summary(run, make_summary(config, outcomes={}, results=results))
    return model


def run_training(
    config: RunConfig, folder: Path, *, start: StartRuntime, fresh: bool = False, resume: bool = False
) -> Path:
    """Train and write the summary; return the policy folder.

    Raises:
        ConfigError: there is a run in the folder already and neither `fresh` nor `resume` was asked for.
    """
    reporter = Reporter()
    has_checkpoint = bool(list_checkpoints(RunDirectory(folder).checkpoints_path(LABEL)))
    if resume and not has_checkpoint:
        raise ConfigError(f"--resume {folder}: it holds no checkpoint; start the run without --resume")
    if has_checkpoint and not resume and not fresh:
        raise ConfigError(
            f"out: {folder} holds a run already: go on with --resume {folder}, or start over with --fresh"
        )
    run = RunDirectory.create(folder, config, command="train", fresh=fresh)
    fingerprint = compute_fingerprint(config, ("seed",))  # --resume reads the settings of the run
    with StageMarkers(run).running(LABEL, fingerprint) as running, MemorySampler() as memory:
        try:
            result = run_rl(config, run=run, label=LABEL, start=start, reporter=reporter, memory=memory)
        except StoppedError as stopped:
            raise StoppedError(f"{stopped}; go on with: medvista train --resume {folder}") from None
    results = {
        LABEL: {
            "summary": result.summary,
            "actors": [asdict(actor) for actor in result.actors],
            "wall_s": running.elapsed_s(),
            "peak_pss_bytes": memory.peak_pss_bytes,
        }
    }
    write_summary(run, make_summary(config, outcomes={}, results=results))
    groups = result.summary["groups"]
    if not groups["consumed"]:
        reporter.say(
            f"No group was trained, the weights are unchanged: {groups['filtered']} of {groups['submitted']} had equal "
            f"rewards, {groups['failed']} failed"
        )
    return result.model_path


def run_single_evaluation(config: RunConfig, folder: Path, *, as_json: bool) -> None:
    """Evaluate one policy folder, write the summary and print the table."""
    config = replace(config, mode="local")  # one process, whatever trained the policy
    run = RunDirectory.create(folder, config, command="eval")
    outcomes, wall_s = run_evaluation(config, run=run, row="eval", reporter=Reporter())
    summary = make_summary(config, outcomes={"eval": outcomes}, results={"eval": {"wall_s": wall_s}})
    write_summary(run, summary)
    text = run.summary_path.read_text() if as_json else format_markdown(rows_of_summary(summary))
    import typer

    typer.echo(text)
