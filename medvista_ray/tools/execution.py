"""Runs one tool and turns whatever happens into a record. Used in the env's process and in the workers alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medvista_ray.errors import MissingPackageError, ToolArgumentError, ToolError
from medvista_ray.tools.base import (
    CallKey,
    ImageRecord,
    ServiceCall,
    ServiceTool,
    Tool,
    ToolContext,
    ToolOutput,
)
from medvista_ray.types.tool_calls import ToolFailure

MAX_ERROR_CHARS = 240
MAX_TEXT_CHARS = 4000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """A checked call on its way to the process that runs it."""

    tool: str
    arguments: str  # JSON text, which carries every value that a model can write
    records: tuple[ImageRecord, ...]  # the indexed images that it may open
    load: Callable[[str], bytes]  # digest -> the bytes of one of them
    key: CallKey
    timeout_s: float  # for the tool itself: neither its start nor the wait for a free worker counts
    expires_s: float = math.inf  # when the budget of the episode ends, whatever it waits for; of `time.monotonic`

    @property
    def is_expired(self) -> bool:
        """Return whether the budget of the episode is spent."""
        return time.monotonic() >= self.expires_s


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Execution:
    """What a call gave before its images are indexed: an output, or a failure with its text."""

    output: ToolOutput = field(default_factory=ToolOutput)
    failure: ToolFailure | None = None
    error: str = ""


def execute(tool: Tool, arguments: Mapping[str, Any], context: ToolContext) -> Execution:
    """Run a tool; whatever it raises becomes a typed failure."""
    try:
        output = tool.run(arguments, context)
    except ToolArgumentError as error:
        return failed(ToolFailure.BAD_ARGUMENT, str(error))
    except (ModuleNotFoundError, MissingPackageError) as error:
        return failed(ToolFailure.NOT_INSTALLED, str(error))
    except ToolError as error:
        return failed(ToolFailure.FAILED, str(error))
    except (Exception, SystemExit) as error:  # noqa: BLE001  -- a third party's code may raise anything
        return failed(ToolFailure.FAILED, f"{type(error).__name__}: {error}")
    return _checked(tool, output)


def execute_batch(tool: ServiceTool, calls: Sequence[ServiceCall]) -> list[Execution]:
    """Run calls together; when the tool raises, each runs again alone, so that none fails for another's sake."""
    if len(calls) > 1:
        try:
            results: Any = tool.run_batch(calls)
        except (Exception, SystemExit):  # noqa: BLE001  -- a third party's code may raise anything
            results = None
        if isinstance(results, list) and len(results) == len(calls):
            return [_judge(tool, result) for result in results]
    return [execute(tool, call.arguments, call.context) for call in calls]


def _judge(tool: Tool, result: object) -> Execution:
    if isinstance(result, ToolArgumentError):
        return failed(ToolFailure.BAD_ARGUMENT, str(result))
    if isinstance(result, ToolError):
        return failed(ToolFailure.FAILED, str(result))
    return _checked(tool, result)


def _checked(tool: Tool, output: object) -> Execution:
    if not (
        isinstance(output, ToolOutput) and isinstance(output.text, str) and isinstance(output.images, tuple | list)
    ):
        return failed(ToolFailure.FAILED, f"{tool.name} did not return a ToolOutput")
    return Execution(output=ToolOutput(text=clean_text(output.text, MAX_TEXT_CHARS), images=tuple(output.images)))


def failed(failure: ToolFailure, error: str) -> Execution:
    """Make the record of a failed call."""
    return Execution(failure=failure, error=clean_text(error, MAX_ERROR_CHARS))


def clean_text(text: str, max_chars: int) -> str:
    """Cut a text and replace what no encoder can carry."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= max_chars else f"{text[: max_chars - 1]}…"
