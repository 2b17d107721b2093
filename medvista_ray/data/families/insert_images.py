"""What the insert families share: calm backgrounds that inserts stand out from, and inserts blended into them.

A bright insert is brighter than nearly all of its image, a dark one darker, so that a question that names it by look
has one answer. Grey levels 0 to 255, coordinates in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from medvista_ray.data.manifest import Split, load_manifest
from medvista_ray.data.scene import FULL_PX, Pool, draw_cut, load_pool, vary_look

Tone = Literal["bright", "dark"]
TONES: tuple[Tone, Tone] = ("bright", "dark")
_TEXTURE = 0.3  # share of the background's texture that shows through an insert
_BRIGHTEST, _DARKEST = (
    175.0,
    80.0,
)  # of a background: percentile 99 under a bright insert, lowest level under a dark one
_LEVELS: dict[Tone, tuple[float, float]] = {"bright": (212.0, 245.0), "dark": (8.0, 32.0)}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Background:
    """A cut of a real image, made calm for inserts of one tone."""

    pixels: np.ndarray  # float32 [252, 252, 3] grey levels
    tone: Tone
    source: str
    modality: str
    spacing_mm: tuple[float, float] | None


def load_insert_pool(source: str, split: Split) -> Pool:
    """Load the images that inserts are drawn into: those of `zoom`, and those listed for inserts alone."""
    listed = any("insert_mask" in entry.families and source in entry.sets for entry in load_manifest())
    families = ("zoom", "insert_mask") if listed else ("zoom",)
    return Pool(sources=tuple(group for family in families for group in load_pool(source, split, family).sources))


def draw_background(rng: np.random.Generator, pool: Pool) -> Background:
    """Cut a square of a real image and squeeze its grey levels, so that an insert of the drawn tone stands out."""
    image = pool.draw(rng)
    cut = draw_cut(rng, image, FULL_PX)
    pixels = vary_look(rng, cut.pixels, augment=False).astype(np.float32)
    tone = TONES[int(rng.integers(2))]
    if tone == "bright":
        pixels *= min(1.0, _BRIGHTEST / max(float(np.percentile(luminance(pixels), 99)), 1.0))
    else:
        pixels = _DARKEST + pixels * ((255.0 - _DARKEST) / 255.0)
    return Background(
        pixels=pixels, tone=tone, source=image.source, modality=image.modality, spacing_mm=cut.spacing_mm
    )  # fmt: skip


def luminance(pixels: np.ndarray) -> np.ndarray:
    """Return the mean of the colours, float32 [H, W]."""
    return np.asarray(pixels.mean(axis=2), dtype=np.float32)


def draw_level(rng: np.random.Generator, tone: Tone) -> float:
    """Draw the grey level of an insert."""
    return float(rng.uniform(*_LEVELS[tone]))


def clearance(background: Background, share: np.ndarray, level: float) -> float:
    """Say how far an insert of a level stands out from what is around it, in units of the range of what is around it.

    The surroundings are the box of `share` (float [H, W], 0 to 1) with a margin of a third of its sides; their range is
    from percentile 5 to 95.
    """
    y0, y1, x0, x1 = margin_box(share >= 0.5)
    low, high = np.percentile(luminance(background.pixels[y0:y1, x0:x1]), [5.0, 95.0])
    gap = level - high if background.tone == "bright" else low - level
    return float(gap) / max(float(high - low), 1.0)


def margin_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the box of a mask with a margin of a third of its sides as (y0, y1, x0, x1), cut at the borders."""
    x0, y0, x1, y1 = box_of(mask)
    across, down = (x1 - x0) // 3, (y1 - y0) // 3
    return max(0, y0 - down), min(mask.shape[0], y1 + down), max(0, x0 - across), min(mask.shape[1], x1 + across)


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the tight box x0, y0, x1, y1 of a mask with a pixel, the end excluded."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def blend(pixels: np.ndarray, share: np.ndarray, level: float) -> np.ndarray:
    """Return the image with an insert of a level, by share [H, W] 0 to 1; some of the texture beneath stays."""
    grey = luminance(pixels)
    inside = share >= 0.5
    wanted = level + _TEXTURE * (grey - float(grey[inside].mean()))
    return np.asarray(pixels + (share * (wanted - grey))[..., None], dtype=np.float32)


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Round grey levels."""
    return np.asarray(np.clip(np.round(pixels), 0, 255), dtype=np.uint8)
