"""Masks without a model: Otsu's threshold in a box, regions grown from points. Grey values in, a mask out.

Arrays only; the same input gives the same mask. [H, W] grey values, (x, y) points and x0 y0 x1 y1 boxes in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medvista_ray.images.geometry import Box

Point = tuple[float, float]
_SMOOTHING_PX = 1.0  # standard deviation of the Gaussian before a threshold
_MIN_CONTRAST = 0.15  # our choice; anything up to 0.25 gives the same masks on the nuclei of the tests
_FIRST_REACH_PX = 16  # half the side of the first window around a point; it doubles until the region fits


def segment_by_box(grey: np.ndarray, box: Box) -> np.ndarray:
    """Return the largest object in a box, holes filled, bool [H, W].

    Otsu's threshold of the box; the object is the side that is rarer on its rim, bright where both are equal.
    """
    from scipy import ndimage

    x0, y0, x1, y1 = _whole(box, grey.shape)
    part = ndimage.gaussian_filter(grey[y0:y1, x0:x1].astype(np.float32), _SMOOTHING_PX)
    mask = np.zeros(grey.shape, bool)
    if part.min() == part.max():
        return mask
    side = part > _otsu(part)
    rim = np.concatenate([side[0], side[-1], side[:, 0], side[:, -1]])
    if rim.mean() > 0.5:
        side = ~side
    labels, count = ndimage.label(side)
    if count > 0:
        largest = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
        mask[y0:y1, x0:x1] = ndimage.binary_fill_holes(largest)
    return mask


def segment_by_points(
    grey: np.ndarray, positive: Sequence[Point], negative: Sequence[Point], *, box: Box | None = None
) -> np.ndarray:
    """Return the regions around the positive points without those around the negative ones, bool [H, W].

    Args:
        grey: [H, W].
        positive: points in the object, at least one.
        negative: points outside of it.
        box: bound of the object.
    """
    mask = np.zeros(grey.shape, bool)
    for point in positive:
        mask |= _grow(grey, point)
    if box is not None:
        x0, y0, x1, y1 = _whole(box, grey.shape)
        inside = np.zeros(grey.shape, bool)
        inside[y0:y1, x0:x1] = True
        mask &= inside
    return divide(grey, mask, positive, negative) if negative else mask


def divide(grey: np.ndarray, mask: np.ndarray, positive: Sequence[Point], negative: Sequence[Point]) -> np.ndarray:
    """Share a mask out between positive and negative points: a watershed of the gradient, from the points.

    Without positive points the middle of the mask, its deepest pixel, is one.
    """
    from scipy import ndimage
    from skimage.filters import sobel
    from skimage.segmentation import watershed

    if not mask.any():
        return mask
    markers = np.zeros(mask.shape, np.int32)
    for number, points in ((1, positive), (2, negative)):
        for point in points:
            markers[_pixel(point, mask.shape)] = number
    if not positive:
        depth = ndimage.distance_transform_edt(mask)
        depth[markers == 2] = 0
        markers[np.unravel_index(int(depth.argmax()), mask.shape)] = 1
    gradient = sobel(ndimage.gaussian_filter(grey.astype(np.float32), _SMOOTHING_PX))
    kept: np.ndarray = watershed(gradient, markers, mask=mask | (markers > 0)) == 1
    return kept


def _grow(grey: np.ndarray, point: Point) -> np.ndarray:
    """Grow one region: Otsu's threshold in a window around the point that doubles until the region fits into it.

    A window whose two sides differ by little, measured by those of the whole image, holds noise and no border.
    """
    from scipy import ndimage

    row, column = _pixel(point, grey.shape)
    height, width = grey.shape
    least = _MIN_CONTRAST * _contrast(ndimage.gaussian_filter(grey.astype(np.float32), _SMOOTHING_PX))
    reach = _FIRST_REACH_PX
    while True:
        y0, y1, x0, x1 = max(0, row - reach), min(height, row + reach + 1), max(0, column - reach), column + reach + 1
        x1 = min(width, x1)
        part = ndimage.gaussian_filter(grey[y0:y1, x0:x1].astype(np.float32), _SMOOTHING_PX)
        side = part > _otsu(part) if _contrast(part) > least else np.ones(part.shape, bool)
        seed = row - y0, column - x0
        labels, _ = ndimage.label(side == side[seed])
        region = labels == labels[seed]
        reaches_on = (
            (y0 > 0 and region[0].any())
            or (y1 < height and region[-1].any())
            or (x0 > 0 and region[:, 0].any())
            or (x1 < width and region[:, -1].any())
        )
        if not reaches_on:
            mask = np.zeros(grey.shape, bool)
            mask[y0:y1, x0:x1] = region
            # The holes of a region that runs to the rim of the image are other objects.
            at_rim = mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()
            filled: np.ndarray = mask if at_rim else ndimage.binary_fill_holes(mask)
            return filled
        reach *= 2


def _contrast(values: np.ndarray) -> float:
    """Return how far the means of the two sides of Otsu's threshold are apart."""
    if values.min() == values.max():
        return 0.0
    side = values > _otsu(values)
    return float(values[side].mean() - values[~side].mean())


def _otsu(values: np.ndarray) -> float:
    from skimage.filters import threshold_otsu

    return float(threshold_otsu(values))


def _pixel(point: Point, shape: tuple[int, ...]) -> tuple[int, int]:
    return min(shape[0] - 1, int(point[1])), min(shape[1] - 1, int(point[0]))


def _whole(box: Box, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Round a box outwards to whole pixels."""
    x0, y0 = max(0, int(box[0])), max(0, int(box[1]))
    return x0, y0, min(shape[1], max(x0 + 1, int(np.ceil(box[2])))), min(shape[0], max(y0 + 1, int(np.ceil(box[3]))))
