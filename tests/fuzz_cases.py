"""How many cases a fuzz test draws: few in the unit tier, 2,000 in `make test`, 100,000 in `make test-long`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

_CASES = int(os.environ.get("MEDVISTA_FUZZ_CASES", "100"))
_SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]


_MANY = 10_000  # enough for what no byte from a network or a policy's action reaches first


def fuzz(test: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a hypothesis test of a parser, or of the wire, whose cases grow with the tier."""
    marked: Callable[..., Any] = pytest.mark.fuzz(
        settings(max_examples=_CASES, deadline=None, suppress_health_check=_SLOW)(test)
    )
    return marked


def fuzz_some(test: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a hypothesis test as `fuzz` does, at most 10,000 cases: behind the parser, the wire and the decoders."""
    marked: Callable[..., Any] = pytest.mark.fuzz(
        settings(max_examples=min(_CASES, _MANY), deadline=None, suppress_health_check=_SLOW)(test)
    )
    return marked
