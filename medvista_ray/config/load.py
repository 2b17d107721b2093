"""The door of the configuration: YAML files and `key=value` words in, one frozen `RunConfig` out.

Owns merging and the wording of user errors: one line with the key, the value, what it must be, and where it was
written. The only user of omegaconf; defaults, units and bounds are in `schema`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from medvista_ray.config.schema import RunConfig
from medvista_ray.errors import ConfigError


def load_config(paths: Sequence[str | Path] = (), overrides: Sequence[str] = ()) -> RunConfig:
    """Merge YAML files left to right, then `key=value` overrides; every mistake is a one-line `ConfigError`.

    An override may leave out the section where the last part of the key names one field only (`families=zoom`), and may
    give a list as `a,b`.
    """
    leaves = _leaf_types(RunConfig)
    merged = OmegaConf.structured(RunConfig)
    for path in paths:
        for key, value in _read_file(Path(path), leaves):
            _set(merged, key, value, leaves[key], source=f"in {path}")
    for override in overrides:
        key, value = _read_override(override, leaves)
        _set(merged, key, value, leaves[key], source="on the command line")
    try:
        config = OmegaConf.to_object(merged)  # bounds are checked here, by the schema
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'the configuration'}: {_first_line(error)}") from error
    assert isinstance(config, RunConfig)
    return config


def dump_config(config: RunConfig) -> str:
    """Write every setting, defaults included, as YAML text that `load_config` reads back to an equal config."""
    return str(OmegaConf.to_yaml(OmegaConf.structured(config)))


def _leaf_types(section: type, prefix: str = "") -> dict[str, Any]:
    """Map every dotted key to the type of its field."""
    hints = get_type_hints(section)
    leaves: dict[str, Any] = {}
    for field in fields(section):
        key = prefix + field.name
        if is_dataclass(hints[field.name]):
            leaves.update(_leaf_types(hints[field.name], f"{key}."))
        else:
            leaves[key] = hints[field.name]
    return leaves


# --- where values come from
def _read_file(path: Path, leaves: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if not path.is_file():
        raise ConfigError(f"config file {str(path)!r} does not exist: give the path of a YAML file")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f" at line {mark.line + 1}"
        problem = getattr(error, "problem", None) or _first_line(error)
        raise ConfigError(f"config file {str(path)!r} is not YAML{line}: {problem}") from error
    except OSError as error:
        raise ConfigError(f"config file {str(path)!r} cannot be read: {error.strerror or error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"config file {str(path)!r} must hold `key: value` lines, got {type(content).__name__}")
    yield from _flatten(content, "", leaves, source=f"in {path}")


def _flatten(
    content: Mapping[Any, Any], prefix: str, leaves: Mapping[str, Any], *, source: str
) -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        key = f"{prefix}{name}"
        if key in leaves:
            yield key, value
        elif not any(leaf.startswith(f"{key}.") for leaf in leaves):
            raise _unknown_key(key, leaves, source)
        elif isinstance(value, dict):
            yield from _flatten(value, f"{key}.", leaves, source=source)
        else:
            raise ConfigError(f"{key} must be a section of `key: value` lines, got {value!r} ({source})")


def _read_override(override: str, leaves: Mapping[str, Any]) -> tuple[str, Any]:
    source = "on the command line"
    written, equals, text = override.partition("=")
    if not equals or not written.strip():
        raise ConfigError(f"override {override!r} must be key=value, for example learner.lr=1e-4")
    key = written.strip()
    if key not in leaves:
        full = [leaf for leaf in leaves if leaf.rpartition(".")[2] == key]
        if len(full) > 1:
            raise ConfigError(f"{key} names {len(full)} settings ({source}): write one of {', '.join(full)}")
        if any(leaf.startswith(f"{key}.") for leaf in leaves):
            raise ConfigError(f"{key} is a section, not a setting ({source}): write {key}.<name>=value")
        if not full:
            raise _unknown_key(key, leaves, source)
        key = full[0]
    return key, _parse(key, text, leaves[key])


def _parse(key: str, text: str, kind: Any) -> Any:
    """Read the text of an override by the type of its field: text stays as written, a list may be `a,b`."""
    if kind is str or get_origin(kind) is Literal:
        return text
    is_list = get_origin(kind) is tuple
    if is_list and not text.lstrip().startswith("["):
        text = f"[{text}]"
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[call-overload, index]
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{key} must be {_describe(kind)}, got {text!r} (on the command line)") from error


# --- setting one value
def _set(merged: Any, key: str, value: Any, kind: Any, *, source: str) -> None:
    """Set one leaf; omegaconf converts what may be converted (1 -> 1.0) and refuses the rest."""
    refused = ConfigError(f"{key} must be {_describe(kind)}, got {value!r} ({source})")
    if value is None or value == "???" or (kind is str and not isinstance(value, str)):
        raise refused
    section_key, _, name = key.rpartition(".")
    section = merged[section_key] if section_key else merged
    try:
        with read_write(section):  # frozen dataclasses are read-only
            OmegaConf.update(section, name, value)
        resolved = section[name]
    except (OmegaConfBaseException, TypeError) as error:
        if isinstance(value, str) and "${" in value:
            raise ConfigError(f"{key}: {_first_line(error)}, got {value!r} ({source})") from error
        raise refused from error
    if any(isinstance(number, float) and not math.isfinite(number) for number in _numbers(resolved)):
        raise ConfigError(f"{key} must be finite, got {value!r} ({source})")


def _numbers(value: Any) -> tuple[Any, ...]:
    return tuple(value) if OmegaConf.is_config(value) else (value,)


def _unknown_key(key: str, leaves: Mapping[str, Any], source: str) -> ConfigError:
    """Name the nearest key: by the whole path, else by the last part of it."""
    sections = [leaf.rpartition(".")[0] for leaf in leaves if "." in leaf]
    near = difflib.get_close_matches(key, [*leaves, *sections], n=1, cutoff=0.6)
    if not near:
        last = key.rpartition(".")[2]
        names = {leaf.rpartition(".")[2]: leaf for leaf in leaves}
        near = [names[name] for name in difflib.get_close_matches(last, names, n=1, cutoff=0.6)]
    remedy = f"did you mean {near[0]}?" if near else f"the sections are {', '.join(dict.fromkeys(sections))}"
    return ConfigError(f"unknown config key {key!r} ({source}): {remedy}")


_NAMES = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text (in quotes if it looks like a number)",
}


def _describe(kind: Any) -> str:
    """Say in words what a field takes."""
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(str(part) for part in parts)}"
    if get_origin(kind) is not tuple:
        return _NAMES[kind]
    plural = {int: "integers", float: "numbers", bool: "booleans", str: "texts"}[parts[0]]
    return f"a list of {plural}" if parts[1:] == (Ellipsis,) else f"a list of {len(parts)} {plural}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
