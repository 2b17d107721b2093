"""`calculate`: arithmetic on numbers. Reads an expression with its own tokens and a walk over Python's syntax tree.

Nothing is evaluated by Python: a node that is not in the table below is refused. Every number, those on the way too,
stays within a bound, so no expression costs more than its length.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from medvista_ray.errors import ToolArgumentError
from medvista_ray.tools.base import Tool, ToolContext, ToolCost, ToolOutput

MAX_CHARS = 200
MAX_VALUE = 1e15  # of every number: whole ones stay exact, powers stay small
MAX_EXPONENT = 1000.0
_TOKEN = re.compile(
    r"\s+|(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.])|(?P<name>[a-z]+)|\*\*|//|[-+*/%(),]", re.ASCII
)

_OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = MappingProxyType(
    {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
        ast.FloorDiv: operator.floordiv,
        ast.Mod: operator.mod,
    }
)


def _mean(*values: float) -> float:
    return math.fsum(values) / len(values)


def _round(value: float, digits: float = 0) -> float:
    if digits != int(digits) or not 0 <= digits <= 15:
        raise ToolArgumentError("round takes a whole number of digits from 0 to 15")
    return round(value, int(digits)) if digits else round(value)


_FUNCTIONS: Mapping[str, tuple[Callable[..., float], int, int]] = MappingProxyType(
    {  # name -> function, least and most arguments
        "min": (lambda *values: min(values), 1, MAX_CHARS),
        "max": (lambda *values: max(values), 1, MAX_CHARS),
        "mean": (_mean, 1, MAX_CHARS),
        "abs": (abs, 1, 1),
        "sqrt": (math.sqrt, 1, 1),
        "round": (_round, 1, 2),
    }
)
_CONSTANTS: Mapping[str, float] = MappingProxyType({"pi": math.pi})


class Calculate(Tool):
    """Compute a number."""

    name = "calculate"
    description = (
        "Compute an expression of numbers: + - * / // % ** ( ), min, max, mean, abs, sqrt, round, pi. No units."
    )
    cost = ToolCost.INLINE
    parameters: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {"expression": {"type": "string", "minLength": 1, "maxLength": MAX_CHARS}},
        "required": ["expression"],
        "additionalProperties": False,
    }

    def run(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutput:
        """Return the value: a whole number in full, any other with ten digits."""
        value = calculate(arguments["expression"])
        return ToolOutput(text=str(value) if isinstance(value, int) else f"{value:.10g}")


def calculate(expression: str) -> int | float:
    """Return the value of an expression; `ToolArgumentError` says what is not allowed in it."""
    _check_tokens(expression)
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ToolArgumentError(
            "the expression cannot be read: is it complete, and do its parentheses match?"
        ) from error
    return _bounded(_value_of(tree.body))


def _check_tokens(expression: str) -> None:
    """Refuse every character that is no number, known name or operator, before the parser sees it."""
    if len(expression) > MAX_CHARS:
        raise ToolArgumentError(f"the expression has more than {MAX_CHARS} characters")
    position = 0
    while position < len(expression):
        token = _TOKEN.match(expression, position)
        if token is None:
            hint = "; a power is **" if expression[position] == "^" else ""
            raise ToolArgumentError(f"{expression[position : position + 10]!r} is no number or operator here{hint}")
        if (name := token["name"]) and name not in _FUNCTIONS and name not in _CONSTANTS:
            known = ", ".join([*_FUNCTIONS, *_CONSTANTS])
            raise ToolArgumentError(f"{name[:20]!r} is not known; there are {known}")
        position = token.end()


def _value_of(node: ast.AST) -> int | float:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        return _bounded(node.value)
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.UAdd, ast.USub)):
        value = _value_of(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        return _bounded(_combine(node.op, _value_of(node.left), _value_of(node.right)))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
        return _bounded(_call(node.func.id, node))
    raise ToolArgumentError("the expression holds something else than numbers, operators and functions of numbers")


def _combine(kind: ast.operator, left: float, right: float) -> float:
    if isinstance(kind, ast.Pow):
        return _power(left, right)
    function = _OPERATORS.get(type(kind))
    if function is None:
        raise ToolArgumentError("use + - * / // % **")
    if right == 0 and isinstance(kind, (ast.Div, ast.FloorDiv, ast.Mod)):
        raise ToolArgumentError("division by zero")
    return function(left, right)


def _power(base: float, exponent: float) -> float:
    if base == 0 and exponent < 0:
        raise ToolArgumentError("division by zero")
    if base < 0 and exponent != int(exponent):
        raise ToolArgumentError("a negative number has no such power")
    if abs(exponent) > MAX_EXPONENT or (base != 0 and exponent * math.log10(abs(base)) > math.log10(MAX_VALUE) + 1):
        raise ToolArgumentError(f"the power is out of bounds: numbers are at most {MAX_VALUE:g}")
    result: float = base**exponent
    return result


def _call(name: str, node: ast.Call) -> float:
    function, least, most = _FUNCTIONS[name]
    if node.keywords or not least <= len(node.args) <= most:
        raise ToolArgumentError(f"{name} takes {least}{'' if least == most else ' or more'} numbers")
    values = [_value_of(argument) for argument in node.args]
    if name == "sqrt" and values[0] < 0:
        raise ToolArgumentError("a negative number has no square root")
    return function(*values)


def _bounded(value: int | float) -> int | float:
    if not abs(value) <= MAX_VALUE:  # not-a-number is refused too
        raise ToolArgumentError(f"numbers are at most {MAX_VALUE:g}")
    return value
