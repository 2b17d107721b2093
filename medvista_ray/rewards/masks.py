"""How much two masks agree. Masks are bool [H, W] of the same image."""

from __future__ import annotations

import numpy as np

from medvista_ray.errors import DataError
from medvista_ray.types.messages import Reference


def mask_iou(one: np.ndarray, other: np.ndarray) -> float:
    """Return intersection over union, 0.0 to 1.0; 1.0 when both are empty."""
    intersection, union = _overlap(one, other)
    return intersection / union if union else 1.0


def mask_dice(one: np.ndarray, other: np.ndarray) -> float:
    """Return 2 x intersection over the sum of areas, 0.0 to 1.0; 1.0 when both are empty."""
    intersection, union = _overlap(one, other)
    return 2 * intersection / (union + intersection) if union else 1.0


def get_wanted_mask(reference: Reference) -> np.ndarray:
    """Return the mask to outline; `DataError` names the task where there is none, or nothing in it.

    Drawing nothing would be right for an empty one, so that no action at all would earn the reward.
    """
    if reference.mask is None:
        raise DataError(f"task {reference.task_id!r} has no mask to outline: env.rubric has to be one for its answers")
    if not reference.mask.any():
        raise DataError(
            f"task {reference.task_id!r} has an empty mask: there is nothing to outline, leave the task out"
        )
    return reference.mask


def _overlap(one: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    if one.shape != other.shape:
        raise ValueError(f"masks of unequal shapes: {one.shape} and {other.shape}")
    one, other = one.astype(bool, copy=False), other.astype(bool, copy=False)
    return int(np.count_nonzero(one & other)), int(np.count_nonzero(one | other))
