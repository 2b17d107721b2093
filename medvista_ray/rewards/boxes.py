"""Placeholder while the grader is written."""

from __future__ import annotations

import numpy as np


def parse_boxes(text: str) -> np.ndarray | None:
    """Return None."""
    return None
