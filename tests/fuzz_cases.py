"""How many cases a fuzz test draws: few in the unit tier, 2,000 in `make test`, 100,000 in `make test-long`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

_CASES = int(os.environ.get("MEDVISTA_FUZZ_CASES", "100"))
_SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]


def fuzz(test: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a hypothesis test of a parser, or of the wire, whose cases grow with the tier."""
    marked: Callable[..., Any] = pytest.mark.fuzz(
        settings(max_examples=_CASES, deadline=None, suppress_health_check=_SLOW)(test)
    )
    return marked
