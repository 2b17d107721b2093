"""Windows: how stored values of more than 8 bits become grey levels. Pure arithmetic; knows no files."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

# (centre, width) in HU. The first six are common reading presets; `metal` is our choice for implants.
PRESETS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "soft_tissue": (40.0, 400.0),
        "lung": (-600.0, 1500.0),
        "bone": (400.0, 1800.0),
        "brain": (40.0, 80.0),
        "abdomen": (60.0, 400.0),
        "metal": (3000.0, 2000.0),
    }
)
DEFAULT_PRESET = "soft_tissue"


def apply_window(values: np.ndarray, *, center: float, width: float) -> np.ndarray:
    """Map stored values [H, W] linearly from [center - width/2, center + width/2] to uint8 0..255, clipped."""
    if width <= 0:
        raise ValueError(f"a window has a positive width, got {width}")
    low = center - width / 2
    return np.asarray(np.clip((values.astype(np.float32) - low) / width, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def to_rgb(grey: np.ndarray) -> np.ndarray:
    """Repeat grey levels [H, W] to [H, W, 3]."""
    return np.repeat(grey[..., None], 3, axis=2)
