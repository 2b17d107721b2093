"""`medvista train` and `medvista eval` on a user's own folder and data: one stage, one run directory."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from medvista_ray.assembly import StartRuntime
from medvista_ray.config.schema import RunConfig
from medvista_ray.driver.checkpoint import list_checkpoints
from medvista_ray.errors import ConfigError, StoppedError
from medvista_ray.evaluation.statistics import rows_of_summary
from medvista_ray.evaluation.table import format_markdown
from medvista_ray.policy.loading import resolve_policy_path
from medvista_ray.recipes.evaluate import run_evaluation
from medvista_ray.recipes.progress import Reporter
from medvista_ray.recipes.rl import run_rl
from medvista_ray.recipes.summary import make_summary
from medvista_ray.runs.directory import RunDirectory
from medvista_ray.runs.memory import MemorySampler
from medvista_ray.runs.summary import write_summary

LABEL = "rl"


def run_training(
    config: RunConfig, folder: Path, *, start: StartRuntime, fresh: bool = False, resume: bool = False
) -> Path:
    """Train and write the summary; return the policy folder.

    Raises:
        ConfigError: there is a run in the folder already and neither `fresh` nor `resume` was asked for.
    """
    resolve_policy_path(config.policy.path)
    reporter = Reporter()
    run = RunDirectory.create(folder, config, fresh=fresh)
    has_checkpoint = bool(list_checkpoints(run.checkpoints_path(LABEL)))
    if resume and not has_checkpoint:
        raise ConfigError(f"--resume {folder}: it holds no checkpoint; start the run without --resume")
    if has_checkpoint and not resume:
        raise ConfigError(
            f"out: {folder} holds a run already: go on with --resume {folder}, or start over with --fresh"
        )
    run.mark_unfinished()
    with MemorySampler() as memory:
        try:
            result = run_rl(config, run=run, label=LABEL, start=start, reporter=reporter, memory=memory)
        except StoppedError as stopped:
            raise StoppedError(f"{stopped}; go on with: medvista train --resume {folder}") from None
    results = {
        LABEL: {
            "summary": result.summary,
            "actors": [asdict(actor) for actor in result.actors],
            "wall_s": result.wall_s,
            "peak_pss_bytes": memory.peak_pss_bytes,
        }
    }
    write_summary(run, make_summary(config, outcomes={}, results=results))
    return result.model_path


def run_single_evaluation(config: RunConfig, folder: Path, *, as_json: bool) -> None:
    """Evaluate one policy folder, write the summary and print the table."""
    resolve_policy_path(config.policy.path)
    reporter = Reporter()
    run = RunDirectory.create(folder, config)
    outcomes, wall_s = run_evaluation(config, run=run, row="eval", reporter=reporter)
    summary = make_summary(config, outcomes={"eval": outcomes}, results={"eval": {"wall_s": wall_s}})
    write_summary(run, summary)
    text = run.summary_path.read_text() if as_json else format_markdown(rows_of_summary(summary))
    import typer

    typer.echo(text)
