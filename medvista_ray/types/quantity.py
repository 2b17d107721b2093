"""A number and its unit as text: what graders compare and data sets are checked for."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d{1,3})?)\s*([a-zµ°%²³]*)", re.IGNORECASE | re.ASCII)
_MAX_CHARS = 64


def parse_number(text: str) -> tuple[float, str] | None:
    """Read a number and its unit ("" without one); None when the text is not exactly that."""
    text = text.strip()
    match = _NUMBER.fullmatch(text) if len(text) <= _MAX_CHARS else None
    return None if match is None else (float(match[1]), match[2].casefold())
