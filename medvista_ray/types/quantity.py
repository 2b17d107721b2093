"""A number and its unit as text: what graders compare and data sets are checked for."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from types import MappingProxyType

# Digits are ASCII; a unit is letters of any script, with an exponent after it.
_NUMBER = re.compile(
    r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]{1,3})?)\s*((?:[^\W\d_]+(?:\^?[23])?|[%°])?)[.。]?",
    re.IGNORECASE,
)
_MAX_CHARS = 64

# What a unit measures, and its size in the first unit of that kind.
UNITS: Mapping[str, tuple[str, float]] = MappingProxyType(
    {
        "mm": ("length", 1.0),
        "um": ("length", 1e-3),
        "cm": ("length", 10.0),
        "m": ("length", 1000.0),
        "mm2": ("area", 1.0),
        "um2": ("area", 1e-6),
        "cm2": ("area", 100.0),
        "m2": ("area", 1e6),
        "mm3": ("volume", 1.0),
        "ml": ("volume", 1000.0),
        "cm3": ("volume", 1000.0),
        "l": ("volume", 1e6),
        "%": ("share", 1.0),
        "hu": ("attenuation", 1.0),
        "deg": ("angle", 1.0),
        "px": ("pixels", 1.0),
    }
)
# Other ways to write them, after NFKC and casefold, without `^`; μ is U+03BC.
_SPELLINGS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("millimeter", "millimeters", "millimetre", "millimetres", "毫米"), "mm"),
        **dict.fromkeys(("micrometer", "micrometers", "micrometre", "micrometres", "micron", "microns"), "um"),
        **dict.fromkeys(("μm", "微米"), "um"),
        **dict.fromkeys(("centimeter", "centimeters", "centimetre", "centimetres", "厘米"), "cm"),
        **dict.fromkeys(("meter", "meters", "metre", "metres", "米"), "m"),
        **dict.fromkeys(("平方毫米", "sqmm"), "mm2"),
        **dict.fromkeys(("平方厘米", "sqcm"), "cm2"),
        "μm2": "um2",
        **dict.fromkeys(("milliliter", "milliliters", "millilitre", "millilitres", "毫升"), "ml"),
        **dict.fromkeys(("cc", "ccm", "立方厘米"), "cm3"),
        **dict.fromkeys(("ul", "μl", "立方毫米"), "mm3"),
        **dict.fromkeys(("liter", "liters", "litre", "litres", "升"), "l"),
        **dict.fromkeys(("percent", "pct"), "%"),
        **dict.fromkeys(("°", "degree", "degrees", "度"), "deg"),
        **dict.fromkeys(("pixel", "pixels", "像素"), "px"),
    }
)


def parse_number(text: str) -> tuple[float, str] | None:
    """Read a number and its unit as written, casefolded ("" without one); None when the text is not exactly that."""
    text = text.strip()
    match = _NUMBER.fullmatch(text) if len(text) <= _MAX_CHARS else None
    return None if match is None else (float(match[1]), match[2].casefold())


def normalize_unit(unit: str) -> str:
    """Return a unit as `UNITS` spells it; an unknown one after NFKC and casefold."""
    folded = unicodedata.normalize("NFKC", unit).casefold().replace("^", "").strip()
    return _SPELLINGS.get(folded, folded)


def convert(value: float, unit: str, *, to: str) -> float | None:
    """Return `value` in another unit; None when the two do not measure the same, or one of them is not known."""
    source, target = normalize_unit(unit), normalize_unit(to)
    if source == target:
        return value
    if source not in UNITS or target not in UNITS or UNITS[source][0] != UNITS[target][0]:
        return None
    return value * UNITS[source][1] / UNITS[target][1]
