"""Geometry of derived images: boxes, crops, scales, and the exact map back to the source. Pixels only; no files.

Coordinates are continuous: pixel (row r, column c) covers [c, c+1) x [r, r+1); points are (x, y).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]  # x0, y0, x1, y1


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """Affine map from coordinates of a derived image to its source: x' = a x + b y + c, y' = d x + e y + f."""

    coefficients: tuple[float, float, float, float, float, float] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Map a point to the source."""
        a, b, c, d, e, f = self.coefficients
        return a * x + b * y + c, d * x + e * y + f

    def box(self, box: Sequence[float]) -> Box:
        """Map a box to the source; corners are sorted again, since a flip swaps them."""
        x0, y0 = self.point(box[0], box[1])
        x1, y1 = self.point(box[2], box[3])
        return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)

    def inverse_box(self, box: Sequence[float]) -> Box:
        """Map a source box into the derived image; corners are sorted again."""
        x0, y0 = self.inverse_point(box[0], box[1])
        x1, y1 = self.inverse_point(box[2], box[3])
        return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)

    def after(self, inner: Transform) -> Transform:
        """Return the map that applies `inner` first and this one then."""
        a, b, c, d, e, f = self.coefficients
        p, q, r, s, t, u = inner.coefficients
        return Transform(
            coefficients=(
                a * p + b * s,
                a * q + b * t,
                a * r + b * u + c,
                d * p + e * s,
                d * q + e * t,
                d * r + e * u + f,
            )
        )

    def inverse_point(self, x: float, y: float) -> tuple[float, float]:
        """Map a source point into the derived image."""
        a, b, c, d, e, f = self.coefficients
        determinant = a * e - b * d
        return (e * (x - c) - b * (y - f)) / determinant, (a * (y - f) - d * (x - c)) / determinant


def mask_to_source(mask: np.ndarray, to_source: Transform, *, width: int, height: int) -> np.ndarray:
    """Map a mask of a derived image, bool [H, W], to its source: bool [height, width], nearest pixel, else False."""
    a, b, c, d, e, f = to_source.coefficients
    determinant = a * e - b * d
    inverse = (e, -b, b * f - c * e, -d, a, c * d - a * f)
    return _sample_mask(mask, tuple(value / determinant for value in inverse), width=width, height=height)


def mask_from_source(mask: np.ndarray, to_source: Transform, *, width: int, height: int) -> np.ndarray:
    """Map a mask of a source, bool [H, W], into a derived image of that size, nearest pixel, False outside."""
    return _sample_mask(mask, to_source.coefficients, width=width, height=height)


def _sample_mask(mask: np.ndarray, coefficients: Sequence[float], *, width: int, height: int) -> np.ndarray:
    """Look up, for the centre of every pixel [height, width], the pixel of `mask` that an affine map gives."""
    a, b, c, d, e, f = coefficients
    x, y = np.arange(width)[None, :] + 0.5, np.arange(height)[:, None] + 0.5
    columns = np.floor(a * x + b * y + c).astype(np.int64)
    rows = np.floor(d * x + e * y + f).astype(np.int64)
    is_inside = (columns >= 0) & (columns < mask.shape[1]) & (rows >= 0) & (rows < mask.shape[0])
    sampled: np.ndarray = is_inside & mask[rows.clip(0, mask.shape[0] - 1), columns.clip(0, mask.shape[1] - 1)]
    return sampled


def box_from_thousandths(box: Sequence[float], width: int, height: int) -> Box:
    """Turn a box in 0-1000 coordinates into pixels of an image of that size."""
    return box[0] * width / 1000, box[1] * height / 1000, box[2] * width / 1000, box[3] * height / 1000


def downscale(pixels: np.ndarray, longest_side: int) -> np.ndarray:
    """Shrink to at most `longest_side` pixels; never enlarges.

    The mean of whole blocks (Pillow's `reduce`) when the factor is a whole number: then equal sums of blocks give equal
    views, bit for bit. Else Pillow's box filter.
    """
    height, width = pixels.shape[:2]
    longest = max(height, width)
    if longest <= longest_side:
        return pixels
    factor = longest // longest_side
    if longest % longest_side == 0 and height % factor == 0 and width % factor == 0:
        blocks: np.ndarray = np.array(Image.fromarray(pixels).reduce(factor))
        return blocks
    size = (max(1, round(width * longest_side / longest)), max(1, round(height * longest_side / longest)))
    resized: np.ndarray = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
    return resized


def crop_and_scale(pixels: np.ndarray, box: Box, longest_side: int) -> tuple[np.ndarray, Transform]:
    """Cut a box (pixels, clipped to the image, rounded to whole pixels) and scale its longest side to `longest_side`.

    Returns the new pixels and the map from their coordinates to those of `pixels`.
    """
    height, width = pixels.shape[:2]
    x0, y0 = max(0, round(box[0])), max(0, round(box[1]))
    x1, y1 = min(width, round(box[2])), min(height, round(box[3]))
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"the box {tuple(round(value, 1) for value in box)} holds no pixel of {width} x {height}")
    crop = pixels[y0:y1, x0:x1]
    longest = max(x1 - x0, y1 - y0)
    if longest == longest_side:
        scaled = np.ascontiguousarray(crop)
    else:
        size = tuple(max(1, round(side * longest_side / longest)) for side in (x1 - x0, y1 - y0))
        method = Image.Resampling.BILINEAR if longest < longest_side else Image.Resampling.BOX
        scaled = np.array(Image.fromarray(np.ascontiguousarray(crop)).resize((size[0], size[1]), method))
    scale_x, scale_y = (x1 - x0) / scaled.shape[1], (y1 - y0) / scaled.shape[0]
    return scaled, Transform(coefficients=(scale_x, 0.0, float(x0), 0.0, scale_y, float(y0)))
