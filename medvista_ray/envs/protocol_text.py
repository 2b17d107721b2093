"""Reads one action of the think-act protocol. Text in, a typed result out; knows no tools, no env, no tokens.

An action is `<think>…</think>` and then either `<tool_call>{"name": …, "arguments": {…}}</tool_call>` or
`<answer>…</answer>`. The tags must be right, in order, closed and not nested, with nothing but blanks outside of them.
Wrong tags make an action malformed; right tags around bad JSON make a bad call, which is the tool's matter.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from medvista_ray.types.tool_calls import ToolCall

_TAG = re.compile(r"</?(?:think|tool_call|answer)>")
_CALL_TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
_ANSWER_TAGS = ["<think>", "</think>", "<answer>", "</answer>"]

_MAX_DEPTH = 32
_MAX_INT_DIGITS = 18  # fits 64 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The final answer."""

    thought: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A tool call whose JSON is one."""

    thought: str
    call: ToolCall


@dataclass(frozen=True, slots=True, kw_only=True)
class BadCall:
    """The right tags around something that is not a call."""

    thought: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Malformed:
    """The tags are not those of the protocol."""

    error: str


ParsedAction = Answer | Call | BadCall | Malformed


def parse_action(text: str) -> ParsedAction:
    """Read one action; never raises."""
    tags = list(_TAG.finditer(text))
    names = [tag[0] for tag in tags]
    if names not in (_CALL_TAGS, _ANSWER_TAGS):
        return Malformed(error=f"expected {''.join(_CALL_TAGS)} or {''.join(_ANSWER_TAGS)}, got {''.join(names[:8])!r}")
    outside = (text[: tags[0].start()], text[tags[1].end() : tags[2].start()], text[tags[3].end() :])
    if any(part.strip() for part in outside):
        return Malformed(error="text outside of the tags")
    thought, content = text[tags[0].end() : tags[1].start()], text[tags[2].end() : tags[3].start()]
    if names == _ANSWER_TAGS:
        return Answer(thought=thought.strip(), text=content.strip())
    try:
        return Call(thought=thought.strip(), call=parse_call(content))
    except ValueError as error:
        return BadCall(thought=thought.strip(), error=str(error))


def parse_call(text: str) -> ToolCall:
    """Read the JSON of a tool call; `ValueError` says what is wrong with it."""
    value = _load_json(text)
    if not isinstance(value, dict):
        raise ValueError("a call is a JSON object with name and arguments")
    unknown = sorted(value.keys() - {"name", "arguments"})
    if unknown:
        raise ValueError(f"a call has name and arguments, not {unknown[0][:40]!r}")
    name, arguments = value.get("name"), value.get("arguments")
    if not isinstance(name, str):
        raise ValueError("a call needs a name")
    if not isinstance(arguments, dict):
        raise ValueError("a call needs arguments, a JSON object")
    return ToolCall(name=name, arguments=arguments)


def _load_json(text: str) -> Any:
    try:
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            parse_int=_short_int,
            object_pairs_hook=_unique_keys,
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise ValueError("not JSON: nested too deeply") from error
    _check_plain(value)
    return value


def _check_plain(value: Any) -> None:
    """Refuse what JSON allows and no record can carry: deep nests, and text that is not Unicode."""
    layer = [value]
    for _ in range(_MAX_DEPTH):
        inner: list[Any] = []
        for item in layer:
            if isinstance(item, str):
                _check_unicode(item)
            elif isinstance(item, dict):
                inner.extend((*item.keys(), *item.values()))
            elif isinstance(item, list):
                inner.extend(item)
        if not inner:
            return
        layer = inner
    raise ValueError("not JSON: nested too deeply")


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("not JSON: half of a surrogate pair") from error


def _refuse_constant(text: str) -> float:
    raise ValueError(f"not JSON: {text} is no number")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("not JSON: a number is too large")
    return value


def _short_int(text: str) -> int:
    if len(text.lstrip("-")) > _MAX_INT_DIGITS:
        raise ValueError("not JSON: a number is too large")
    return int(text)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise ValueError("not JSON: a key stands twice")
    return keys
