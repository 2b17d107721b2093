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
_DISPLAY_PERCENTILES = (1.0, 99.5)
_DISPLAY_TOLERANCE = 0.01  # of the ends, 400 apart: float32 and the interpolation of percentiles


def apply_window(values: np.ndarray, *, center: float, width: float) -> np.ndarray:
    """Map stored values [H, W] linearly from [center - width/2, center + width/2] to uint8 0..255, clipped.

    This is the VOI LUT function LINEAR_EXACT of DICOM (PS3.3 C.11.2.1.3.2), rounded to grey levels. The default
    function, LINEAR, has a window of one value less: the two differ by 255 / width grey levels at most, and rounding.
    """
    if width <= 0:
        raise ValueError(f"a window has a positive width, got {width}")
    low = center - width / 2
    return np.asarray(np.clip((values.astype(np.float32) - low) / width, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def to_rgb(grey: np.ndarray) -> np.ndarray:
    """Repeat grey levels [H, W] to [H, W, 3]."""
    return np.repeat(grey[..., None], 3, axis=2)


def is_on_display_scale(values: np.ndarray) -> bool:
    """Return whether stored values have their percentiles where `display_scale` puts them."""
    if values.dtype != np.float32:
        return False
    center, width = PRESETS[DEFAULT_PRESET]
    ends = center - width / 2, center + width / 2
    return bool(np.allclose(np.percentile(values, _DISPLAY_PERCENTILES), ends, atol=_DISPLAY_TOLERANCE))


def display_scale(values: np.ndarray) -> np.ndarray:
    """Put intensities without a unit on the scale of the default window: percentiles 1 and 99.5 become its two ends.

    Only CT has Hounsfield units; this is our choice, so that one set of presets serves MR and X-ray too.
    """
    low, high = np.percentile(values, _DISPLAY_PERCENTILES)
    center, width = PRESETS[DEFAULT_PRESET]
    scaled = (values - low) / max(float(high - low), 1e-6) * width + center - width / 2
    return np.asarray(scaled, dtype=np.float32)
