"""Numbers of points and regions: lengths, areas, angles, statistics, shape. Pure arithmetic; knows no images.

Points are (x, y) in pixels, spacing is (row, column) millimetres. H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from medvista_ray.tools.overlay import outline

Point = tuple[float, float]
Spacing = tuple[float, float]
_BLOCK_PIXELS = 2**18
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
    return int(np.count_nonzero(mask)) * spacing_mm[0] * spacing_mm[1]


def angle_deg(points: Sequence[Point], spacing_mm: Spacing) -> float | None:
    """Return the angle at the second of three points, 0 to 180 degrees; None when two of them are one."""
    (x0, y0), (x1, y1), (x2, y2) = _in_mm(points, spacing_mm)
    first, second = (x0 - x1, y0 - y1), (x2 - x1, y2 - y1)
    if not any(first) or not any(second):
        return None
    cross = first[0] * second[1] - first[1] * second[0]
    return math.degrees(math.atan2(abs(cross), first[0] * second[0] + first[1] * second[1]))


def compute_statistics(values: np.ndarray, mask: np.ndarray) -> Statistics:
    """Return the statistics of values in a region, bool [H, W] with at least one pixel.

    Values are [H, W], or colour [H, W, 3]: of that, the mean of the three channels (our choice).
    """
    rows, columns = bounds_of(mask)
    values, mask = values[rows, columns], mask[rows, columns]
    num_pixels = int(np.count_nonzero(mask))
    mean = math.fsum(float(part.sum()) for part in _values_in(values, mask)) / num_pixels
    squares = math.fsum(float(np.square(part - mean).sum()) for part in _values_in(values, mask))
    return Statistics(
        mean=mean,
        std=math.sqrt(squares / num_pixels),
        low=min(float(part.min()) for part in _values_in(values, mask) if part.size),
        high=max(float(part.max()) for part in _values_in(values, mask) if part.size),
        num_pixels=num_pixels,
    )


def compute_shape(mask: np.ndarray, spacing_mm: Spacing) -> Shape:
    """Return the shape of a region, bool [H, W] with at least one pixel."""
    mask = mask[bounds_of(mask)]
    variances = np.linalg.eigvalsh(_covariance_mm2(mask, spacing_mm)).clip(min=0.0)  # ascending
    return Shape(
        area_mm2=mask_area_mm2(mask, spacing_mm),
        major_axis_mm=float(4 * np.sqrt(variances[1])),
        minor_axis_mm=float(4 * np.sqrt(variances[0])),
        perimeter_mm=_perimeter_px(mask) * spacing_mm[0] if spacing_mm[0] == spacing_mm[1] else None,
    )


def bounds_of(mask: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and the columns that hold a region of at least one pixel."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _values_in(values: np.ndarray, mask: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the values of a region, block by block, as float64 [N]."""
    for start, stop in _row_blocks(mask.shape):
        part = values[start:stop][mask[start:stop]].astype(np.float64)
        yield part.mean(axis=1) if part.ndim == 2 else part


def _covariance_mm2(mask: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """Return the second central moments of a region, [2, 2]: from the sums of its rows and columns, and one of both."""
    in_row, in_column = np.count_nonzero(mask, axis=1), np.count_nonzero(mask, axis=0)
    num_pixels = int(in_row.sum())
    rows, columns = np.arange(mask.shape[0], dtype=np.float64), np.arange(mask.shape[1], dtype=np.float64)
    rows -= in_row @ rows / num_pixels
    columns -= in_column @ columns / num_pixels
    both = math.fsum(float(rows[start:stop] @ (mask[start:stop] @ columns)) for start, stop in _row_blocks(mask.shape))
    row_mm, column_mm = spacing_mm
    off_diagonal = both * row_mm * column_mm
    moments = [
        [float(in_row @ rows**2) * row_mm**2, off_diagonal],
        [off_diagonal, float(in_column @ columns**2) * column_mm**2],
    ]
    return np.array(moments) / num_pixels


def _perimeter_px(mask: np.ndarray) -> float:
    width = mask.shape[1]
    counts = np.zeros(50, np.int64)
    padded = np.pad(mask, 2)  # a border pixel is told by its neighbours, its weight by theirs
    for start, stop in _row_blocks(mask.shape):
        border = outline(padded[start : stop + 4])[1:-1, 1:-1].astype(np.uint8)
        sums = np.zeros((stop - start, width), np.uint8)  # at most 49
        for row in (0, 1, 2):
            for column in (0, 1, 2):
                weight = 1 if row == column == 1 else 2 if 1 in (row, column) else 10
                sums += np.uint8(weight) * border[row : row + stop - start, column : column + width]
        counts += np.bincount(sums[border[1:-1, 1:-1] > 0], minlength=50)
    return math.fsum(float(counts[total]) * weight for total, weight in _PERIMETER_WEIGHTS.items())


def _row_blocks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yield rows from start to stop of which each block is small, so that no copy is as large as the image."""
    height, width = shape
    step = max(1, _BLOCK_PIXELS // width)
    for start in range(0, height, step):
        yield start, min(height, start + step)


def _in_mm(points: Sequence[Point], spacing_mm: Spacing) -> list[Point]:
    row_mm, column_mm = spacing_mm
    return [(x * column_mm, y * row_mm) for x, y in points]


def _pairs(points: Sequence[Point]) -> list[tuple[Point, Point]]:
    return list(pairwise(points))
