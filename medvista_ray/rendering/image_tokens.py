"""How many feature tokens an image has: a pure function of its size and the processor's settings, no torch.

The arithmetic is `smart_resize` of the Qwen2-VL image processor (tested against the processor itself).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvista_ray.errors import ConfigError, RenderError

MAX_ASPECT_RATIO = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTokenCounter:
    """Settings of the image processor that decide the number of feature tokens."""

    patch_px: int
    merge: int
    min_pixels: int
    max_pixels: int

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Return (rows, columns) of merged visual tokens for an image of that size in pixels."""
        unit = self.patch_px * self.merge
        if max(width, height) / min(width, height) > MAX_ASPECT_RATIO:
            raise RenderError(f"an image of {width} x {height} is longer than {MAX_ASPECT_RATIO} times its width")
        rows, columns = round(height / unit) * unit, round(width / unit) * unit
        if rows * columns > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            rows = max(unit, math.floor(height / shrink / unit) * unit)
            columns = max(unit, math.floor(width / shrink / unit) * unit)
        elif rows * columns < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            rows = math.ceil(height * grow / unit) * unit
            columns = math.ceil(width * grow / unit) * unit
        return rows // unit, columns // unit

    def count(self, width: int, height: int) -> int:
        """Return the number of feature tokens of an image of that size in pixels."""
        rows, columns = self.grid(width, height)
        return rows * columns


def load_image_token_counter(folder: Path) -> ImageTokenCounter:
    """Read the processor's settings from a policy folder."""
    settings = _processor_settings(folder)
    size: dict[str, Any] = settings.get("size") or {}
    numbers = {
        "patch_size": settings.get("patch_size"),
        "merge_size": settings.get("merge_size"),
        "min_pixels": _first(settings.get("min_pixels"), size.get("shortest_edge")),  # as the processor chooses
        "max_pixels": _first(settings.get("max_pixels"), size.get("longest_edge")),
    }
    for name, value in numbers.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"policy.path: the image processor in {folder} has no usable {name}: {value!r}")
    return ImageTokenCounter(
        patch_px=numbers["patch_size"],
        merge=numbers["merge_size"],
        min_pixels=numbers["min_pixels"],
        max_pixels=numbers["max_pixels"],
    )


def _first(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


def _processor_settings(folder: Path) -> dict[str, Any]:
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        if path.exists():
            settings = read_json_object(path)
            inner = settings.get("image_processor")
            if isinstance(inner, dict):
                return inner
            if "patch_size" in settings:
                return settings
    raise ConfigError(f"policy.path: no image processor settings in {folder}; take a whole Hugging Face folder")


def read_json_object(path: Path) -> dict[str, Any]:
    """Read one file of a policy folder; `ConfigError` when it is no JSON object."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"policy.path: {path} is not JSON ({error}); copy the folder again") from error
    if not isinstance(value, dict):
        raise ConfigError(f"policy.path: {path} holds no JSON object; copy the folder again")
    return value
