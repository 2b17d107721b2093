"""The commands that run a policy: demo, sft, train, eval, and what belongs to a run directory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medvista_ray.cli.app import AsJson, app
from medvista_ray.errors import ConfigError

if TYPE_CHECKING:
    from medvista_ray.assembly import StartRuntime
    from medvista_ray.config.schema import RunConfig
    from medvista_ray.data.manifest import Split

Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, any field of the config", metavar="KEY=VALUE")]
ConfigFile = Annotated[Path, typer.Argument(help="YAML file; see configs/")]
Local = Annotated[bool, typer.Option("--local", help="One process, no Ray")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Delete what an earlier run left and start over")]
Out = Annotated[Path | None, typer.Option("--out", help="Run directory")]


def _pick_root(config: RunConfig) -> StartRuntime:
    if config.mode == "local":
        from medvista_ray.local import start_local

        return start_local
    from medvista_ray.cluster.launch import start_cluster

    return start_cluster


def _load(
    paths: Sequence[Path],
    overrides: Sequence[str] | None,
    *,
    out: Path | None,
    splits: Sequence[Split],
    local: bool = False,
    needs_ray: bool = True,
) -> tuple[RunConfig, Path]:
    """Load the config of a command that trains or evaluates; what it needs must be there before anything is written."""
    from medvista_ray.config.load import load_config
    from medvista_ray.recipes.requirements import check_run

    config = load_config(list(paths), list(overrides or ()))
    if local:
        config = replace(config, mode="local")
    check_run(config, splits=splits, needs_ray=needs_ray)
    return config, out if out is not None else Path(config.out) / config.run_name


@app.command()
def demo(
    overrides: Overrides = None,
    *,
    quick: Annotated[bool, typer.Option("--quick", help="The zoom family alone, about 4 minutes")] = False,
    local: Local = False,
    fresh: Fresh = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Train the tiny model on real medical images and print the table: five rows, two with --quick.

    Example: medvista demo --quick learner.lr=1e-4
    """
    from medvista_ray.recipes.demo import FULL_ROWS, QUICK_ROWS, Demo, demo_config_paths

    paths, words = demo_config_paths(quick=quick), _expand_families(overrides)
    config, folder = _load(paths, words, local=local, out=out, splits=("train", "held_out"))
    full = not quick and set(config.data.families) >= {"zoom", "window", "structure"}
    _run_stages(
        lambda run, reporter: Demo(
            config, run=run, start=_pick_root(config), reporter=reporter, rows=FULL_ROWS if full else QUICK_ROWS
        ).execute(),
        config=config,
        folder=folder,
        fresh=fresh,
        as_json=as_json,
    )


@app.command()
def sft(
    config_file: ConfigFile,
    overrides: Overrides = None,
    *,
    fresh: Fresh = False,
    out: Out = None,
) -> None:
    """Fine-tune a policy folder on cold-start trajectories.

    Example: medvista sft configs/demo.yaml policy.path=/models/qwen3-vl run_name=my-sft
    """
    from medvista_ray.recipes.train import run_fine_tuning

    config, folder = _load([config_file], overrides, out=out, splits=("train",), needs_ray=False)
    model = run_fine_tuning(config, folder, fresh=fresh)
    typer.echo(f"{model}\nNext: medvista train {folder / 'config.yaml'} policy.path={model} --out {folder}-rl")


@app.command()
def train(
    config_file: Annotated[Path | None, typer.Argument(help="YAML file; not with --resume")] = None,
    overrides: Overrides = None,
    *,
    local: Local = False,
    resume: Annotated[Path | None, typer.Option("--resume", help="Go on with the run in this directory")] = None,
    fresh: Fresh = False,
    out: Out = None,
) -> None:
    """Train a policy folder with asynchronous GRPO.

    Example: medvista train configs/demo.yaml policy.path=runs/my-sft/models/sft run_name=my-rl
    """
    from medvista_ray.recipes.requirements import check_run
    from medvista_ray.recipes.train import run_training
    from medvista_ray.runs.directory import RunDirectory

    if resume is not None:
        if config_file is not None or overrides or local or fresh or out is not None:
            raise ConfigError("--resume goes on under the settings of the run: give --resume RUN_DIRECTORY and no more")
        config, folder = RunDirectory.open(resume).read_config(), resume
        check_run(config, splits=("train",), needs_ray=True)
    elif config_file is not None:
        config, folder = _load([config_file], overrides, local=local, out=out, splits=("train",))
    else:
        raise ConfigError("train needs a config file, or --resume RUN_DIRECTORY")
    model = run_training(config, folder, start=_pick_root(config), fresh=fresh, resume=resume is not None)
    typer.echo(f"{model}\nNext: medvista eval {folder / 'config.yaml'} policy.path={model} --out {folder}-eval")


@app.command("eval")
def evaluate(
    config_file: ConfigFile,
    overrides: Overrides = None,
    *,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a policy folder on held-out items: k samples and one greedy answer each, in one process without Ray.

    Example: medvista eval configs/demo.yaml policy.path=runs/demo/models/rl_tools run_name=my-eval
    """
    from medvista_ray.recipes.train import run_single_evaluation

    config, folder = _load([config_file], overrides, out=out, splits=("held_out",), needs_ray=False)
    run_single_evaluation(config, folder, as_json=as_json)


@app.command("check-config")
def check_config(
    words: Annotated[
        list[str], typer.Argument(help="YAML files, merged left to right, then key=value", metavar="WORDS")
    ],
) -> None:
    """Check config files, the env, its tools and its rubric, and print the resolved values.

    Example: medvista check-config configs/demo.yaml env.max_turns=4
    """
    from medvista_ray.config.load import dump_config, load_config
    from medvista_ray.recipes.requirements import check_env_parts

    paths = [Path(word) for word in words if "=" not in word]
    config = load_config(paths, [word for word in words if "=" in word])
    check_env_parts(config)
    typer.echo(dump_config(config))


@app.command()
def report(run_directory: Path) -> None:
    """Write report.html of a finished run again.

    Example: medvista report runs/demo
    """
    from medvista_ray.runs.directory import RunDirectory
    from medvista_ray.viewer.report import write_report

    run = RunDirectory.open(run_directory)
    write_report(run)
    typer.echo(run.report_path)


def _expand_families(overrides: Sequence[str] | None) -> list[str]:
    """Let `families=zoom` stand for `data.families=[zoom]` with equal weights, for the demo only."""
    expanded: list[str] = []
    for override in overrides or ():
        key, _, value = override.partition("=")
        if key == "families":
            names = [name for name in value.strip("[]").split(",") if name]
            expanded.append(f"data.families=[{','.join(names)}]")
            expanded.append(f"data.weights=[{','.join('1.0' for _ in names)}]")
        else:
            expanded.append(override)
    return expanded


def _run_stages(
    execute: Callable[[Any, Any], Any], *, config: RunConfig, folder: Path, fresh: bool, as_json: bool
) -> None:
    from medvista_ray.evaluation.statistics import rows_of_summary
    from medvista_ray.evaluation.table import make_table
    from medvista_ray.recipes.progress import Reporter
    from medvista_ray.runs.directory import RunDirectory
    from medvista_ray.viewer.report import write_report

    reporter = Reporter()
    run = RunDirectory.create(folder, config, command="demo", fresh=fresh)
    summary = execute(run, reporter)
    write_report(run)
    if as_json:
        typer.echo(run.summary_path.read_text())
        return
    from rich.console import Console

    console = Console()
    console.print(make_table(rows_of_summary(summary)))
    console.print(
        f"{summary.wall_s.total:.0f} s in all. Few subjects, made for demonstration: no claim of medical skill.\n"
        f"Look at {run.report_path}; numbers in {run.summary_path}; the trained model in {run.model_path('rl_tools')}",
        highlight=False,
    )
