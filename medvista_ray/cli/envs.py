"""`medvista check-env`: the strict check of an environment, ours or anybody's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medvista_ray.cli.app import AsJson, app
from medvista_ray.errors import ConfigError

if TYPE_CHECKING:
    from medvista_ray.config.schema import EnvConfig
    from medvista_ray.envs.check_env import CheckResult
    from medvista_ray.envs.check_play import Subject
    from medvista_ray.rollout.env_factory import EnvFactory
    from medvista_ray.types.protocols import TaskSource

_CACHE_BYTES = 64 * 2**20


@app.command("check-env")
def check_env(
    target: Annotated[str, typer.Argument(help="pkg.module:Env, or a registered id")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, any field of the config")] = None,
    *,
    config_file: Annotated[Path | None, typer.Option("--config", help="Its tasks, tools and limits")] = None,
    episodes: Annotated[int, typer.Option("--episodes", help="Of the memory check", min=30)] = 300,
    as_json: AsJson = False,
) -> None:
    """Check an environment: Gymnasium's rules, determinism, no label in any byte, deadlines, close, memory.

    Example: medvista check-env my_package.envs:MyEnv --config configs/own.yaml data.source=my_data
    """
    from medvista_ray.envs.check_env import check_env as run_checks

    subject, factory = _make_subject(target, config_file, overrides or (), episodes)
    results: list[CheckResult] = []
    try:
        for result in run_checks(subject):
            results.append(result)
            if not as_json:
                _print_result(result)
    finally:
        factory.close()
    failed = [result for result in results if not result.holds]
    if as_json:
        rows = [{"check": each.name, "holds": each.holds, "problems": each.problems} for each in results]
        typer.echo(json.dumps({"target": target, "checks": rows}, indent=2))
    elif not failed:
        typer.echo(f"{target}: all {len(results)} checks hold. Train on it with env.target={target}")
    if failed:
        typer.echo(f"medvista: {target} fails {len(failed)} of {len(results)} checks", err=True)
        raise typer.Exit(1)


def _print_result(result: CheckResult) -> None:
    typer.echo(f"{'ok  ' if result.holds else 'FAIL'}  {result.name:<18} {result.wall_s:6.1f} s")
    for problem in result.problems[:20]:
        typer.echo(f"      {' '.join(problem.split())}")


def _make_subject(
    target: str, config_file: Path | None, overrides: Sequence[str], episodes: int
) -> tuple[Subject, EnvFactory]:
    from medvista_ray.envs.check_play import Subject
    from medvista_ray.rollout.env_factory import load_env_class, make_env_factory

    target = _resolve(target)
    env_class = load_env_class(target)
    config, tasks = _load(env_class, target, config_file, overrides)
    factory = make_env_factory(config, cache_bytes=_CACHE_BYTES)

    def make(*, tools: Sequence[str] | None = None, tool_timeout_s: float | None = None) -> Any:
        if tools is None:
            return factory.make()
        changed = replace(config, tools=tuple(tools), tool_timeout_s=tool_timeout_s or config.tool_timeout_s)
        return _close_both(make_env_factory(changed, cache_bytes=_CACHE_BYTES))

    subject = Subject(
        make=make,
        tasks=tasks,
        descriptions=factory.tools.descriptions,
        tools=config.tools,
        step_timeout_s=config.episode_timeout_s,
        num_episodes=episodes,
    )
    return subject, factory


def _load(
    env_class: Any, target: str, config_file: Path | None, overrides: Sequence[str]
) -> tuple[EnvConfig, TaskSource]:
    """Return the env's section and its tasks: those of the config, else the env's own defaults, else the pocket set."""
    from medvista_ray.config.load import load_config
    from medvista_ray.data.sources import make_task_source

    has_defaults = config_file is None and hasattr(env_class, "make_default_config")
    words = [*(_words_of(env_class.make_default_config()) if has_defaults else ()), *overrides, f"env.target={target}"]
    names_data = any(word.startswith("data.") for word in overrides)
    if config_file is None and not names_data:
        words.append("data.source=pocket")
    run = load_config([] if config_file is None else [config_file], words)
    if has_defaults and not names_data:
        return run.env, env_class.make_default_tasks()
    data = run.data
    tasks = make_task_source(
        data.source,
        "train",
        families=data.families,
        weights=data.weights,
        num_tasks=data.num_tasks,
        seed=run.seed,
    )
    return run.env, tasks


def _words_of(config: EnvConfig) -> list[str]:
    """Write what a config says otherwise than the defaults as key=value, for later words to override."""
    from medvista_ray.config.schema import EnvConfig

    words = []
    for field in fields(EnvConfig):
        value = getattr(config, field.name)
        if value != getattr(EnvConfig(), field.name):
            words.append(f"env.{field.name}={json.dumps(list(value) if isinstance(value, tuple) else value)}")
    return words


def _resolve(target: str) -> str:
    """Turn a registered id into `pkg.module:Class`."""
    if ":" in target and "/" not in target:
        return target
    import gymnasium

    import medvista_ray.envs  # noqa: F401  -- registers ours

    try:
        entry_point = gymnasium.spec(target).entry_point
    except gymnasium.error.Error as error:
        raise ConfigError(f"no environment {target!r}: write pkg.module:Env, or a registered id: {error}") from error
    if not isinstance(entry_point, str):
        raise ConfigError(f"{target!r} is registered as an object: write pkg.module:Env")
    return entry_point


def _close_both(factory: EnvFactory) -> Any:
    """Return an env that closes the tools it was made with."""
    import gymnasium

    class Owner(gymnasium.Wrapper):  # type: ignore[misc]
        def close(self) -> None:
            super().close()
            factory.close()

    return Owner(factory.make())
