"""Make the envs of one process from the config: they share the tools, the drawn views and the encoded bytes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from medvista_ray.config.schema import EnvConfig
from medvista_ray.errors import ConfigError
from medvista_ray.images.store import MemoryBlobCache
from medvista_ray.tools.renderer import ViewRenderer
from medvista_ray.tools.runner import ToolExecutor, ToolRunner, make_tool_runner


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EnvFactory:
    """Makes envs; `close` stops the tool workers that they share."""

    make: Callable[[], Any]
    cache: MemoryBlobCache
    tools: ToolRunner

    def close(self) -> None:
        """Stop the tool workers; may be called again."""
        self.tools.close()


def load_env_class(target: str) -> Callable[..., Any]:
    """Import `pkg.module:Class`; `ConfigError` names the key when it is not there."""
    module_name, _, class_name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as error:  # an empty name, a relative one
        raise ConfigError(f"env.target={target!r}: cannot import {module_name!r}: {error}") from error
    found: Callable[..., Any] | None = getattr(module, class_name, None)
    if not callable(found):
        raise ConfigError(f"env.target={target!r}: {module_name} has no class {class_name!r}; write pkg.module:Class")
    return found


def tool_specs_of(config: EnvConfig) -> tuple[str, ...]:
    """Return the tools that the env of a config needs in its process, or as services."""
    ask = getattr(load_env_class(config.target), "tool_specs", None)
    specs: tuple[str, ...] = ask(config) if ask is not None else (config.tools if config.offer_tools else ())
    return specs


def make_env_factory(
    config: EnvConfig, *, cache_bytes: int, services: Mapping[str, ToolExecutor] | None = None
) -> EnvFactory:
    """Prepare the tools and caches of one process; the env class gets `config`, `tools` and `renderer`.

    Args:
        config: of the env.
        cache_bytes: of encoded images.
        services: the tool services that this process shares with others; None = its own.
    """
    env_class = load_env_class(config.target)
    tools = make_tool_runner(
        tool_specs_of(config),
        timeout_s=config.tool_timeout_s,
        service_threads=config.service_threads,
        services=services,
    )
    cache = MemoryBlobCache(cache_bytes)
    renderer = ViewRenderer(cache, view_size_px=config.view_size_px)
    return EnvFactory(
        make=lambda: env_class(config=config, tools=tools, renderer=renderer),
        cache=cache,
        tools=tools,
    )
