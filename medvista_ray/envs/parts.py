"""What an env is made from, as a caller writes it: a folder, a mapping, a name; and what is wrong with it, at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

from medvista_ray.config.schema import EnvConfig
from medvista_ray.errors import ConfigError
from medvista_ray.rewards.registry import make_rubric
from medvista_ray.rewards.rubric import Rubric
from medvista_ray.types.protocols import TaskSource


def open_tasks(data: str | Path, *, split: Literal["train", "held_out"], families: Sequence[str]) -> TaskSource:
    """Open what `data.source` names; `ConfigError` says what it could be."""
    from medvista_ray.data.sources import make_task_source

    return make_task_source(str(data), split, families=tuple(families), weights=(), num_tasks=0, seed=0)


def complete_config(family: Any, config: EnvConfig | Mapping[str, Any] | None, *, has_tasks: bool) -> EnvConfig:
    """Return the whole config of an env.

    Args:
        family: the env class, a `ToolEnv`.
        config: as it was given.
        has_tasks: whether tasks were given; the default ones have a view size of their own.

    Raises:
        ConfigError: a field is unknown or out of bounds.
    """
    default: EnvConfig = family.make_default_config()
    if has_tasks:
        default = replace(default, view_size_px=EnvConfig().view_size_px)
    if config is None:
        return default
    if isinstance(config, Mapping):
        known = {field.name for field in fields(EnvConfig)}
        if unknown := sorted(config.keys() - known):
            raise ConfigError(f"config: there is no field {unknown[0]!r}; there are {', '.join(sorted(known))}")
        config = replace(default, **config)
    if not isinstance(config, EnvConfig):
        raise ConfigError(f"config is an EnvConfig or a mapping of its fields, not {type(config).__name__}")
    return config


def check_default_view(family: Any, config: EnvConfig) -> None:
    """Refuse a view at which the default tasks of a family would show their answer."""
    size_px = family.make_default_config().view_size_px
    if family.needs_small_views and config.view_size_px != size_px:
        raise ConfigError(
            f"env.view_size_px must be {size_px} for the default tasks of {family.__name__}, got "
            f"{config.view_size_px}: at another size the first view may show the answer. Write config as a mapping, "
            "{'tools': ...}, to change nothing else"
        )


def find_rubric(rubric: Rubric | str | None, *, named: str) -> Rubric:
    """Return a rubric that was given, or the one of a name."""
    if rubric is None or isinstance(rubric, str):
        return make_rubric(rubric or named)
    if not callable(getattr(rubric, "score", None)):
        raise ConfigError(f"rubric has no method score(episode, *, task, reference): {type(rubric).__name__}")
    return rubric
