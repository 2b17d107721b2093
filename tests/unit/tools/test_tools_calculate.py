"""Arithmetic: its operators, its bounds, and that nothing else gets through."""

from __future__ import annotations

import contextlib
import math
import sys

import pytest
from fuzz_cases import fuzz_some
from hypothesis import given
from hypothesis import strategies as st
from test_tools_views import call, make_shelf

from medvista_ray.errors import ToolArgumentError
from medvista_ray.tools.calculate import MAX_VALUE, calculate


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("7 / 2", 3.5),
        ("7 // 2", 3),
        ("-7 % 3", 2),
        ("2 ** 10", 1024),
        ("-2 ** 2", -4),
        ("2 ** -1", 0.5),
        ("9 ** 0.5", 3),
        ("--+3", 3),
        (" 1e3 + .5 ", 1000.5),
        ("min(3, 1, 2)", 1),
        ("max(3, 1, 2) - abs(-4)", -1),
        ("mean(1, 2, 6)", 3),
        ("sqrt(2) ** 2", 2),
        ("round(2.675, 1)", 2.7),
        ("round(7 / 2 + 0.1)", 4),
        ("pi * 10 ** 2 / 4", math.pi * 25),
        ("(1\n+ 2)", 3),
        ("999999999999999", 999999999999999),
        ("0 ** 0", 1),
        ("1 ** 999", 1),
        ("0.5 ** 900", 0.5**900),
    ],
)
def test_values(expression, value):
    assert calculate(expression) == pytest.approx(value)


def test_what_a_call_says():
    shelf = make_shelf()
    assert call(shelf, "calculate", expression="2 ** 40")[0].text == "1099511627776"
    assert call(shelf, "calculate", expression="1 / 3")[0].text == "0.3333333333"
    assert call(shelf, "calculate", expression="6 / 3")[0].text == "2"
    assert call(shelf, "calculate", expression="round(2.5)")[0].text == "2"


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "cannot be read"),
        ("1 +", "cannot be read"),
        ("(1", "cannot be read"),
        ("1 2", "cannot be read"),
        ("1; 2", "no number or operator"),
        ("1 / 0", "division by zero"),
        ("1 // 0.0", "division by zero"),
        ("1 % 0", "division by zero"),
        ("0 ** -1", "division by zero"),
        ("(-8) ** 0.5", "no such power"),
        ("sqrt(-1)", "no square root"),
        ("10 ** 16", "at most"),
        ("9 ** 9 ** 9", "out of bounds"),
        ("9 ** 9 ** 9 ** 9", "out of bounds"),
        ("0.1 ** -900", "out of bounds"),
        ("1e308 * 10", "at most"),
        ("1e400", "at most"),
        ("9999999999999999", "at most"),
        ("1 / 1e-300", "at most"),
        ("1 << 1000", "no number or operator"),
        ("1 ^ 2", "a power is"),
        ("1 == 1", "no number or operator"),
        ("'a' * 9", "no number or operator"),
        ("[1]", "no number or operator"),
        ("1 if 2 else 3", "not known"),
        ("lambda", "not known"),
        ("exec(1)", "not known"),
        ("__import__('os')", "no number or operator"),
        ("abs.real", "no number or operator"),
        ("(1).real", "no number or operator"),
        ("abs", "something else"),
        ("(1, 2)", "something else"),
        ("abs(*(1, 2))", "something else"),
        ("min()", "min takes 1 or more"),
        ("abs(1, 2)", "abs takes 1 numbers"),
        ("round(1, 0.5)", "whole number of digits"),
        ("round(1, 99)", "whole number of digits"),
        ("1 (2)", "something else"),
        ("1j", "no number or operator"),
        ("0x10", "no number or operator"),
        ("1_000", "no number or operator"),
        ("5 mm", "not known"),
        ("2 × 3", "no number or operator"),
        ("٣", "no number or operator"),
        ("1\0", "no number or operator"),
        ("1+" * 101, "more than 200"),
    ],
)
def test_refusals_say_why(expression, message):
    with pytest.raises(ToolArgumentError, match=message):
        calculate(expression)


@pytest.mark.parametrize(
    "expression", ["(" * 100 + ")" * 100, "-" * 199 + "1", "9**" * 66 + "9", "min(" * 49 + "1" + ")" * 49]
)
def test_depth_costs_no_more_than_length(expression):
    """Counted in calls of functions, Python's and C's: a clock would say how busy the machine is."""
    num_calls = 0

    def count(frame, event, argument):
        nonlocal num_calls
        num_calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        with contextlib.suppress(ToolArgumentError):
            assert abs(calculate(expression)) == 1
    finally:
        sys.setprofile(before)
    assert 0 < num_calls < 20 * len(expression)


PIECES = [
    "1",
    "2.5",
    "1e9",
    "(",
    ")",
    "+",
    "-",
    "*",
    "/",
    "//",
    "%",
    "**",
    ",",
    "min",
    "sqrt",
    "round",
    "pi",
    " ",
    "mean",
    "9",
]


@fuzz_some
@given(pieces=st.one_of(st.lists(st.sampled_from(PIECES), max_size=30), st.lists(st.text(max_size=5), max_size=8)))
def test_any_text_is_a_number_within_bounds_or_a_refusal(pieces):
    try:
        value = calculate("".join(pieces))
    except ToolArgumentError:
        return
    assert isinstance(value, (int, float))
    assert abs(value) <= MAX_VALUE
