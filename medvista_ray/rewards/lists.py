"""Ordered lists: the same items in the same order, no more and no fewer."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from medvista_ray.rewards.text import normalize_text
from medvista_ray.types.messages import Reference

_SEPARATOR = re.compile("[,;\n\uff0c\uff1b\u3001]")  # and their full-width forms


def parse_list(text: str) -> tuple[str, ...]:
    """Read the normalised items of a JSON list of texts and numbers, or between , ; 、 and line ends; blank ones go."""
    items = _read_json(text)
    if items is None:
        items = _SEPARATOR.split(text)
    return tuple(filter(None, map(normalize_text, items)))


def is_right_list(answer: str, reference: Reference) -> bool:
    """Return whether an answer has the items of the reference in order; its aliases are other such lists."""
    given = parse_list(answer)
    wanted = {parse_list(text) for text in (reference.answer, *reference.aliases)}
    if reference.items:
        wanted.add(tuple(filter(None, map(normalize_text, reference.items))))
    return bool(given) and given in wanted


def _read_json(text: str) -> Sequence[str] | None:
    if not text.lstrip().startswith("["):
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not all(isinstance(value, str | int | float) and not isinstance(value, bool) for value in values):
        return ()
    return [value if isinstance(value, str) else json.dumps(value) for value in values]
