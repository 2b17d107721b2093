"""What crosses the border of a tool: the call, the result, and the kinds of failure a model can learn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from medvista_ray.types.messages import ImageRef


class ToolFailure(StrEnum):
    """Why a tool call gave no result."""

    BAD_SCHEMA = "bad_schema"  # not JSON, unknown tool, or arguments that break the schema
    BAD_ARGUMENT = "bad_argument"  # fits the schema and makes no sense
    FAILED = "tool_failed"  # the tool raised
    TIMED_OUT = "timed_out"  # the deadline passed; the worker was killed
    NOT_INSTALLED = "not_installed"  # an optional package is missing


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call as the model wrote it."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOutcome:
    """What a call gave: text, new images, or a typed failure."""

    text: str
    images: tuple[ImageRef, ...] = ()
    failure: ToolFailure | None = None

    @property
    def is_error(self) -> bool:
        """Return whether the call failed."""
        return self.failure is not None
