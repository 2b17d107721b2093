"""Names of tools and where they are. A visible table; third parties write `pkg.module:Class`.

Nothing is imported before a tool is asked for.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from medvista_ray.errors import ConfigError, MissingPackageError
from medvista_ray.tools.base import ServiceTool, Tool, ToolCost

BUILTIN_TOOLS: Mapping[str, str] = MappingProxyType(
    {
        "zoom": "medvista_ray.tools.zoom:Zoom",
        "window_level": "medvista_ray.tools.window_level:WindowLevel",
        "measure": "medvista_ray.tools.measure:Measure",
        "flip_rotate": "medvista_ray.tools.flip_rotate:FlipRotate",
        "enhance": "medvista_ray.tools.enhance:Enhance",
        "get_slice": "medvista_ray.tools.get_slice:GetSlice",
        "ground": "medvista_ray.tools.ground:Ground",
        "dicom_info": "medvista_ray.tools.dicom_info:DicomInfo",
        "calculate": "medvista_ray.tools.calculate:Calculate",
        "segment": "medvista_ray.tools.segment:Segment",
        "read_text": "medvista_ray.tools.read_text:ReadText",
    }
)
# Other makes of a tool above: the same name in calls, so only one of them at a time.
VARIANTS: Mapping[str, str] = MappingProxyType(
    {"segment_classical": "medvista_ray.tools.segment:SegmentClassical"}  # no weights, always the same
)
_TARGETS = MappingProxyType({**BUILTIN_TOOLS, **VARIANTS})
_IN_MODULE = "put the class into a module that workers can import"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


def resolve_target(spec: str) -> str:
    """Turn a built-in name or `pkg.module:Class` into `pkg.module:Class`."""
    if not isinstance(spec, str):  # a notebook hands over what no type checker saw
        raise ConfigError(f"env.tools: names or 'pkg.module:Class' are wanted, not {_describe_object(spec)}")
    if spec in _TARGETS:
        return _TARGETS[spec]
    module, colon, name = spec.partition(":")
    if not (colon and module and name):
        raise ConfigError(f"env.tools: no tool {spec!r}; use one of {', '.join(_TARGETS)}, or pkg.module:Class")
    if module == "__main__":
        raise ConfigError(f"env.tools: {spec!r}: {_IN_MODULE}, and name it 'pkg.module:{name}'")
    return spec


def _describe_object(value: object) -> str:
    """Say what stands where a name should; of a class, the name that would do."""
    if not isinstance(value, type):
        return f"a {type(value).__name__}"
    module = value.__module__
    remedy = _IN_MODULE if module == "__main__" else f"write '{module}:{value.__qualname__}'"
    return f"the class {value.__qualname__}: {remedy}"


def load_tool(spec: str) -> Tool:
    """Import, make and check a tool; `ConfigError` says what is wrong with it."""
    return _check_tool(make_tool(spec), spec)


def make_tool(spec: str) -> Tool:
    """Import and make a tool; `ConfigError` when there is none, `MissingPackageError` when it cannot be imported."""
    target = resolve_target(spec)
    module_name, _, class_name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigError(f"env.tools: {spec!r}: there is no module {error.name!r}") from error
        raise MissingPackageError(f"env.tools: {spec!r} needs the package {error.name!r}: install it") from error
    kind = getattr(module, class_name, None)
    if not (isinstance(kind, type) and issubclass(kind, Tool)):
        raise ConfigError(f"env.tools: {spec!r} is no subclass of medvista_ray.tools.base.Tool")
    if inspect.isabstract(kind):
        missing = ", ".join(sorted(kind.__abstractmethods__))
        raise ConfigError(f"env.tools: {spec!r} has no {missing}: write that method, see docs/own_tool.md")
    try:
        return kind()
    except TypeError as error:
        raise ConfigError(f"env.tools: {spec!r} cannot be made without arguments: {error}") from error


def load_tools(specs: Sequence[str]) -> dict[str, Tool]:
    """Load tools by the names that calls use, in order; two of one name are refused."""
    tools: dict[str, Tool] = {}
    for spec in specs:
        tool = load_tool(spec)
        if tool.name in tools:
            raise ConfigError(f"env.tools: two tools are called {tool.name!r}")
        tools[tool.name] = tool
    return tools


def service_specs(specs: Sequence[str]) -> dict[str, str]:
    """Return the specs of the tools that are services, by the names that calls use."""
    tools = load_tools(specs)
    return {tool.name: spec for spec, tool in zip(specs, tools.values(), strict=True) if is_service(tool)}


def is_service(tool: Tool) -> bool:
    """Return whether a tool runs in a process of its own that lasts; `ConfigError` for one that cannot."""
    if tool.cost is not ToolCost.SERVICE:
        return False
    if not isinstance(tool, ServiceTool):
        raise ConfigError(f"env.tools: {tool.name!r} has the cost of a service and is no ServiceTool")
    return True


def runs_inline(tool: Tool) -> bool:
    """Return whether a tool may run in the env's process: only those of this package, since no thread can be killed."""
    target = f"{type(tool).__module__}:{type(tool).__qualname__}"
    return tool.cost is ToolCost.INLINE and target in BUILTIN_TOOLS.values()


def _check_tool(tool: Tool, spec: str) -> Tool:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    for attribute in ("name", "description", "parameters"):
        if not hasattr(tool, attribute):
            raise ConfigError(f"env.tools: {spec!r} has no {attribute!r}")
    if not _NAME.fullmatch(tool.name):
        raise ConfigError(f"env.tools: {spec!r}: the name {tool.name!r} is not made of letters, digits, _ and -")
    try:
        Draft202012Validator.check_schema(dict(tool.parameters))
    except SchemaError as error:
        raise ConfigError(f"env.tools: {spec!r}: parameters is no JSON schema: {error.message}") from error
    return tool
