"""A number and its unit as text: what graders compare and data sets are checked for."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from types import MappingProxyType

# Digits are ASCII; a unit is one word of any script, with an exponent after it; one unit is written as two words.
_NUMBER = re.compile(
    r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]{1,3})?)\s*"
    r"((?:hounsfield\s+units?|[^\W\d_]+(?:\^?[23])?|[%°])?)[.。]?",
    re.IGNORECASE,
)
_MAX_CHARS = 64
_SIGNS = str.maketrans({"\u2212": "-", "\uff0d": "-", "\uff0b": "+"})  # the sign of mathematics, full-width ones

# What a unit measures, and its size in the first unit of that kind.
UNITS: Mapping[str, tuple[str, float]] = MappingProxyType(
    {
        "mm": ("length", 1.0),
        "nm": ("length", 1e-6),
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
        "ms": ("time", 1.0),
        "us": ("time", 1e-3),
        "s": ("time", 1e3),
        "min": ("time", 6e4),
        "h": ("time", 3.6e6),
        "kv": ("voltage", 1.0),  # no mV: without case it is also megavolts
        "v": ("voltage", 1e-3),
        "ma": ("current", 1.0),
        "a": ("current", 1e3),
        "mas": ("charge", 1.0),
        "uas": ("charge", 1e-3),
        "t": ("field", 1.0),
        "mt": ("field", 1e-3),
        "g": ("mass", 1.0),
        "mg": ("mass", 1e-3),
        "kg": ("mass", 1e3),
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
        **dict.fromkeys(("hounsfield", "hounsfield unit", "hounsfield units"), "hu"),
        **dict.fromkeys(("millisecond", "milliseconds", "msec", "毫秒"), "ms"),
        **dict.fromkeys(("microsecond", "microseconds", "μs", "微秒"), "us"),
        **dict.fromkeys(("second", "seconds", "sec", "secs", "秒"), "s"),
        **dict.fromkeys(("minute", "minutes", "mins", "分钟"), "min"),
        **dict.fromkeys(("hour", "hours", "hr", "hrs", "小时"), "h"),
        **dict.fromkeys(("kvp", "kilovolt", "kilovolts", "千伏"), "kv"),
        **dict.fromkeys(("volt", "volts", "伏"), "v"),
        **dict.fromkeys(("milliampere", "milliamperes", "milliamp", "milliamps", "毫安"), "ma"),
        **dict.fromkeys(("ampere", "amperes", "amp", "amps", "安"), "a"),
        **dict.fromkeys(("毫安秒",), "mas"),
        "μas": "uas",
        **dict.fromkeys(("tesla", "teslas", "特斯拉"), "t"),
        **dict.fromkeys(("millitesla", "milliteslas"), "mt"),
        **dict.fromkeys(("gram", "grams", "gramme", "grammes", "克"), "g"),
        **dict.fromkeys(("milligram", "milligrams", "毫克"), "mg"),
        **dict.fromkeys(("kilogram", "kilograms", "kgs", "千克", "公斤"), "kg"),
    }
)


def parse_number(text: str) -> tuple[float, str] | None:
    """Read a number and its unit as written, casefolded ("" without one); None when the text is not exactly that."""
    text = text.strip().translate(_SIGNS)
    match = _NUMBER.fullmatch(text) if len(text) <= _MAX_CHARS else None
    return None if match is None else (float(match[1]), match[2].casefold())


def normalize_unit(unit: str) -> str:
    """Return a unit as `UNITS` spells it; an unknown one after NFKC and casefold."""
    folded = " ".join(unicodedata.normalize("NFKC", unit).casefold().replace("^", "").split())
    return _SPELLINGS.get(folded, folded)


def is_known_unit(unit: str) -> bool:
    """Return whether a unit, in any spelling, is one of `UNITS`."""
    return normalize_unit(unit) in UNITS


def convert(value: float, unit: str, *, to: str) -> float | None:
    """Return `value` in another unit; None when the two do not measure the same, or one of them is not known."""
    source, target = normalize_unit(unit), normalize_unit(to)
    if source == target:
        return value
    if source not in UNITS or target not in UNITS or UNITS[source][0] != UNITS[target][0]:
        return None
    return value * UNITS[source][1] / UNITS[target][1]
