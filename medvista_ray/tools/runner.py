"""Runs the calls of episodes: checks them against their schema, runs them inline or in the pool, indexes the images.

Never raises for a fault of a tool or of a call: every end is a `ToolOutcome`. One runner serves any number of episodes
and threads. Knows no messages and no rewards.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from medvista_ray.errors import ConfigError, ImageError, ToolError
from medvista_ray.tools.base import CallKey, Tool
from medvista_ray.tools.execution import MAX_ERROR_CHARS, Execution, Request, clean_text, execute
from medvista_ray.tools.pool import ToolPool
from medvista_ray.tools.registry import is_service, load_tools, resolve_target, runs_inline, service_specs
from medvista_ray.tools.service import ToolService
from medvista_ray.tools.shelf import ImageShelf
from medvista_ray.types.tool_calls import ToolCall, ToolFailure, ToolOutcome

_MAX_PROBLEM_CHARS = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolDescription:
    """What a policy is told of a tool."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    example: Mapping[str, Any] | None = None  # arguments that make sense for most images; never told to a policy


class ToolExecutor(Protocol):
    """Where calls run that the env's own process does not: the worker pool, or the service of one tool."""

    async def call(self, request: Request) -> Execution:
        """Run a call without holding the event loop; every way it can end is in the result."""

    def call_sync(self, request: Request) -> Execution:
        """Run a call; every way it can end is in the result."""

    def close(self) -> None:
        """Stop its processes; may be called again."""


class ToolRunner:
    """The tools of a run."""

    def __init__(
        self,
        tools: Mapping[str, Tool],
        *,
        timeout_s: float,
        executors: Mapping[str, ToolExecutor] | None = None,
        lent: Collection[str] = (),
    ) -> None:
        """Know the tools by the names that calls use, and for those that do not run inline, where they run.

        Args:
            tools: by name.
            timeout_s: the longest that any call may take.
            executors: by name of tool.
            lent: the tools whose executors are somebody else's to close.
        """
        from jsonschema import Draft202012Validator

        self._executors = MappingProxyType(dict(executors or {}))
        self._lent = frozenset(lent)
        homeless = [name for name, tool in tools.items() if not runs_inline(tool) and name not in self._executors]
        if homeless:
            raise ConfigError(f"env.tools: {homeless[0]!r} needs a process to run in")
        self._tools = MappingProxyType(dict(tools))
        self._timeout_s = timeout_s
        self._validators = {name: Draft202012Validator(dict(tool.parameters)) for name, tool in tools.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names that calls use, in order."""
        return tuple(self._tools)

    @property
    def descriptions(self) -> tuple[ToolDescription, ...]:
        """Return what a policy is told of each tool."""
        return tuple(
            ToolDescription(name=name, description=tool.description, parameters=tool.parameters, example=tool.example)
            for name, tool in self._tools.items()
        )

    def check(self, call: ToolCall) -> ToolOutcome | None:
        """Return the failure of a call that names no tool or breaks its schema, else None."""
        if call.name not in self._tools:
            known = f"there are {', '.join(self._tools)}" if self._tools else "there are no tools"
            return make_failure(ToolFailure.BAD_SCHEMA, f"no tool {call.name[:40]!r}; {known}")
        problem = next(iter(self._validators[call.name].iter_errors(dict(call.arguments))), None)
        if problem is None:
            return None
        place = problem.json_path.removeprefix("$").removeprefix(".")
        message = clean_text(problem.message, _MAX_PROBLEM_CHARS)
        return make_failure(ToolFailure.BAD_SCHEMA, f"{place}: {message}" if place else message)

    def run(self, call: ToolCall, *, shelf: ImageShelf, key: CallKey, budget_s: float | None = None) -> ToolOutcome:
        """Run a call and index its images; waits for the pool. `budget_s` is what is left of the episode.

        Nothing that the call waits for, be it a worker or the start of a tool, makes it last longer than the budget.
        """
        if (failure := self.check(call)) is not None:
            return failure
        if call.name not in self._executors:
            return self._run_inline(call, shelf=shelf, key=key)
        request = self._request(call, shelf, key, budget_s)
        if isinstance(request, ToolOutcome):
            return request
        return index_images(self._executors[call.name].call_sync(request), shelf)

    async def run_async(
        self, call: ToolCall, *, shelf: ImageShelf, key: CallKey, budget_s: float | None = None
    ) -> ToolOutcome:
        """Run a call as `run` does, without holding the event loop while a worker is busy."""
        if (failure := self.check(call)) is not None:
            return failure
        if call.name not in self._executors:
            return self._run_inline(call, shelf=shelf, key=key)
        request = self._request(call, shelf, key, budget_s)
        if isinstance(request, ToolOutcome):
            return request
        return index_images(await self._executors[call.name].call(request), shelf)

    def close(self) -> None:
        """Stop the workers and services; may be called again."""
        for executor in {executor for name, executor in self._executors.items() if name not in self._lent}:
            executor.close()

    def _run_inline(self, call: ToolCall, *, shelf: ImageShelf, key: CallKey) -> ToolOutcome:
        return index_images(execute(self._tools[call.name], call.arguments, shelf.context(key)), shelf)

    def _request(
        self, call: ToolCall, shelf: ImageShelf, key: CallKey, budget_s: float | None
    ) -> Request | ToolOutcome:
        """Encode a call for another process; an outcome when that cannot be done."""
        try:
            arguments = json.dumps(dict(call.arguments))
        except (TypeError, ValueError, RecursionError) as error:  # made by a program: a model writes JSON
            return make_failure(ToolFailure.BAD_ARGUMENT, f"the arguments are no JSON: {error}")
        deadline_s = self._tools[call.name].deadline_s
        return Request(
            tool=call.name,
            arguments=arguments,
            records=shelf.records,
            load=shelf.load,
            key=key,
            timeout_s=self._timeout_s if deadline_s is None else min(self._timeout_s, deadline_s),
            expires_s=math.inf if budget_s is None else time.monotonic() + budget_s,
        )


def make_tool_runner(
    specs: Sequence[str],
    *,
    timeout_s: float,
    num_workers: int = 2,
    service_threads: int = 1,
    services: Mapping[str, ToolExecutor] | None = None,
) -> ToolRunner:
    """Load tools by name or `pkg.module:Class`; start worker processes only if a tool needs them.

    Args:
        specs: built-in names, or `pkg.module:Class`.
        timeout_s: the longest that any call may take; a tool may ask for less.
        num_workers: worker processes for the tools that neither run inline nor are services.
        service_threads: of each service that is made here.
        services: where the services run, by name of tool, and whose to close they stay; None = make them here.
    """
    tools = load_tools(specs)
    pooled = {
        tool.name: resolve_target(spec)
        for spec, tool in zip(specs, tools.values(), strict=True)
        if not runs_inline(tool) and not is_service(tool)
    }
    executors: dict[str, ToolExecutor] = {}
    if pooled:
        pool = ToolPool(pooled, num_workers=num_workers)
        executors.update(dict.fromkeys(pooled, pool))
    executors.update(
        make_services(specs, timeout_s=timeout_s, num_threads=service_threads) if services is None else services
    )
    return ToolRunner(tools, timeout_s=timeout_s, executors=executors, lent=services or ())


def make_services(specs: Sequence[str], *, timeout_s: float, num_threads: int = 1) -> dict[str, ToolService]:
    """Make the services among the tools, by the names that calls use; each starts its process with its first call."""
    return {
        name: ToolService(spec, limit_s=timeout_s, num_threads=num_threads)
        for name, spec in service_specs(specs).items()
    }


def index_images(execution: Execution, shelf: ImageShelf) -> ToolOutcome:
    """Put the images of an execution on the shelf and make its outcome."""
    if execution.failure is not None:
        return make_failure(execution.failure, execution.error)
    try:
        images = shelf.add(execution.output.images)
    except (ToolError, ImageError, ValueError) as error:
        return make_failure(ToolFailure.FAILED, str(error))
    return ToolOutcome(text=execution.output.text, images=tuple(image.ref for image in images))


def make_failure(failure: ToolFailure, text: str) -> ToolOutcome:
    """Make the outcome of a failed call: its kind, then why."""
    return ToolOutcome(text=f"{failure.value}: {clean_text(text, MAX_ERROR_CHARS)}", failure=failure)
