"""Numbers of points and regions: lengths, areas, angles, statistics, shape. Pure arithmetic; knows no images.

Points are (x, y) in pixels, spacing is (row, column) millimetres. H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from medvista_ray.tools.overlay import outline

Point = tuple[float, float]
Spacing = tuple[float, float]
# Weight of a border pixel by the sum over its neighbours, 10 for a diagonal one, 2 for a direct one, 1 for itself:
# the perimeter estimator of Benkrid and Crookes, as scikit-image's `perimeter` has it.
_PERIMETER_WEIGHTS = {
    **dict.fromkeys((5, 7, 15, 17, 25, 27), 1.0),
    **dict.fromkeys((21, 33), math.sqrt(2)),
    **dict.fromkeys((13, 23), (1 + math.sqrt(2)) / 2),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Of the values in a region."""

    mean: float
    std: float  # of the population
    low: float
    high: float
    num_pixels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Of a region, as scikit-image's `regionprops` defines it."""

    area_mm2: float
    major_axis_mm: float  # of the ellipse with the same second moments
    minor_axis_mm: float
    perimeter_mm: float | None  # None where pixels are not square


def path_length_mm(points: Sequence[Point], spacing_mm: Spacing) -> float:
    """Return the length of the path through the points."""
    return math.fsum(math.dist(*ends) for ends in _pairs(_in_mm(points, spacing_mm)))


def polygon_area_mm2(points: Sequence[Point], spacing_mm: Spacing) -> float:
    """Return the area inside a polygon (the shoelace formula)."""
    corners = _in_mm(points, spacing_mm)
    doubled = math.fsum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in _pairs([*corners, corners[0]]))
    return abs(doubled) / 2


def mask_area_mm2(mask: np.ndarray, spacing_mm: Spacing) -> float:
    """Return the area of the pixels of a region, bool [H, W]."""
    return int(mask.sum()) * spacing_mm[0] * spacing_mm[1]


def angle_deg(points: Sequence[Point], spacing_mm: Spacing) -> float | None:
    """Return the angle at the second of three points, 0 to 180 degrees; None when two of them are one."""
    (x0, y0), (x1, y1), (x2, y2) = _in_mm(points, spacing_mm)
    first, second = (x0 - x1, y0 - y1), (x2 - x1, y2 - y1)
    if not any(first) or not any(second):
        return None
    cross = first[0] * second[1] - first[1] * second[0]
    return math.degrees(math.atan2(abs(cross), first[0] * second[0] + first[1] * second[1]))


def compute_statistics(values: np.ndarray) -> Statistics:
    """Return the statistics of the values of a region, at least one."""
    exact = values.astype(np.float64)
    return Statistics(
        mean=float(exact.mean()),
        std=float(exact.std()),
        low=float(exact.min()),
        high=float(exact.max()),
        num_pixels=exact.size,
    )


def compute_shape(mask: np.ndarray, spacing_mm: Spacing) -> Shape:
    """Return the shape of a region, bool [H, W] with at least one pixel."""
    rows, columns = np.nonzero(mask)
    places = np.stack([rows * spacing_mm[0], columns * spacing_mm[1]])
    variances = np.linalg.eigvalsh(np.cov(places, bias=True)).clip(min=0.0)  # ascending
    return Shape(
        area_mm2=mask_area_mm2(mask, spacing_mm),
        major_axis_mm=float(4 * np.sqrt(variances[1])),
        minor_axis_mm=float(4 * np.sqrt(variances[0])),
        perimeter_mm=_perimeter_px(mask) * spacing_mm[0] if spacing_mm[0] == spacing_mm[1] else None,
    )


def _perimeter_px(mask: np.ndarray) -> float:
    border = np.pad(outline(mask), 1).astype(np.int64)
    height, width = mask.shape
    sums = np.zeros((height, width), np.int64)
    for row in (0, 1, 2):
        for column in (0, 1, 2):
            weight = 1 if row == column == 1 else 2 if 1 in (row, column) else 10
            sums += weight * border[row : row + height, column : column + width]
    counts = np.bincount(sums[border[1:-1, 1:-1] > 0], minlength=50)
    return math.fsum(float(counts[total]) * weight for total, weight in _PERIMETER_WEIGHTS.items())


def _in_mm(points: Sequence[Point], spacing_mm: Spacing) -> list[Point]:
    row_mm, column_mm = spacing_mm
    return [(x * column_mm, y * row_mm) for x, y in points]


def _pairs(points: Sequence[Point]) -> list[tuple[Point, Point]]:
    return list(pairwise(points))
