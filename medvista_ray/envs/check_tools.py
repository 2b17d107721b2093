"""The tool that the checks bring along, and arguments that fit the schema of any tool. Knows no env."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar

from medvista_ray.tools.base import Tool, ToolContext, ToolOutput
from medvista_ray.tools.runner import ToolDescription

HANG_SPEC = "medvista_ray.envs.check_tools:Hang"
_STRIDE = 100  # between the numbers of one array, so that four of them are a box that is not empty


class Hang(Tool):
    """Never returns: a step that calls it has to end at the deadline all the same."""

    name = "hang"
    description = "Never returns."
    parameters: ClassVar[Mapping[str, Any]] = {"type": "object", "additionalProperties": False}

    def run(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutput:
        """Wait for ever; only a kill ends it."""
        while True:
            time.sleep(3600)


def example_call(tool: ToolDescription) -> Mapping[str, Any]:
    """Return the arguments that a tool gives as its example, else some that fit its schema."""
    arguments: Mapping[str, Any] = example_arguments(tool.parameters) if tool.example is None else tool.example
    return arguments


def example_arguments(schema: Mapping[str, Any]) -> Any:
    """Make a value that fits the usual JSON schemas of tools: the first of every choice, the smallest of every size."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object":
        properties = schema.get("properties", {})
        wanted = schema.get("required") or list(properties)[:1]
        return {name: example_arguments(properties.get(name, {})) for name in wanted}
    if kind == "array":
        count = max(1, int(schema.get("minItems", 1)))
        items = [example_arguments(schema.get("items", {})) for _ in range(count)]
        return [item + _STRIDE * place if _is_number(item) else item for place, item in enumerate(items)]
    if kind in ("integer", "number"):
        return schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
    return {"string": "1 + 1", "boolean": False}.get(str(kind))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
