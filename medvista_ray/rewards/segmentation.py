"""Rubrics of interactive segmentation: 0.2 x format + 0.8 x quality, after MedSAM-Agent (arXiv 2602.03320).

The weights and the three levels of format are those of its released code; what the levels stand for is our reading. A
task whose mask is empty is refused: doing nothing would be right. What quality is differs:

`SegmentationRubric` (ours, the default): a gain over the best IoU so far pays, and what the last mask has lost against
the best is taken back. The sum telescopes: whatever came before, quality is the IoU of the mask that is left. So it
cannot be farmed: undoing and redoing a mask, more turns, other tools and more text change nothing, and a mask worse
than the best one pays what it is worth and no more.

`SegmentationPublishedRubric`: the published formula. Its bonus adds up every rise of IoU from one turn to the next, so
that spoiling a mask and drawing it again earns 0.1 x the rise for 0.01 a turn: it can be farmed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from medvista_ray.rewards.masks import get_wanted_mask, mask_dice, mask_iou
from medvista_ray.rewards.rubric import FinishedEpisode, Score, make_score
from medvista_ray.types.messages import Reference, Task

FORMAT_WEIGHT, QUALITY_WEIGHT = 0.2, 0.8
OVERSHOOT_COST, TURN_COST, GAIN_BONUS = 1.0, 0.01, 0.1  # of the published quality
MIN_RIGHT_IOU = 0.5  # an episode is right from it on; our choice


def compute_format(episode: FinishedEpisode) -> float:
    """Return 1.0 when the episode drew a mask and stopped by itself, 0.5 when it did one of the two, else 0.0.

    What each of the three levels stands for is our reading: that a prompt has to give a mask, and that stopping counts.
    """
    return (bool(episode.masks) + (episode.answer is not None)) / 2


def compute_published_quality(ious: Sequence[float], dice: float) -> float:
    """Return the published quality before it is clamped to 0..1.

    0.5 IoU + 0.5 Dice of the last mask - 1.0 (max IoU - last IoU) - 0.01 turns + 0.1 sum of positive IoU gains; the
    penalties and the bonus only beyond one turn.

    Args:
        ious: of the masks, one a turn, in order.
        dice: of the last mask.
    """
    if not ious:
        return 0.0
    quality = 0.5 * ious[-1] + 0.5 * dice
    if len(ious) == 1:
        return quality
    gains = sum(max(0.0, after - before) for before, after in pairwise(ious))
    return quality - OVERSHOOT_COST * (max(ious) - ious[-1]) - TURN_COST * len(ious) + GAIN_BONUS * gains


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentationRubric:
    """0.2 format + 0.8 IoU of the mask that is left; in `correct` when the IoU is high enough, else in `partial`.

    Format is 0.0 as soon as one action is not well-formed, our choice.
    """

    min_right_iou: float = MIN_RIGHT_IOU

    def __post_init__(self) -> None:
        _check_bound(self.min_right_iou)

    def score(self, episode: FinishedEpisode, *, task: Task, reference: Reference) -> Score:
        """Score a finished episode; `breakdown` has `format`, `correct` and `partial`."""
        wanted = get_wanted_mask(reference)
        left = episode.masks[-1] if episode.masks else np.zeros_like(wanted)
        iou = mask_iou(left, wanted)
        is_well_formed = all(action.is_well_formed for action in episode.actions)
        right = iou >= self.min_right_iou
        return make_score(
            format=FORMAT_WEIGHT * compute_format(episode) * is_well_formed,
            correct=QUALITY_WEIGHT * iou * right,
            partial=QUALITY_WEIGHT * iou * (not right),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentationPublishedRubric:
    """0.2 format + 0.8 clamp(published quality); turns are those that gave a mask.

    A right episode has 0.8 IoU of its last mask in `correct`; `partial` is the rest, and may be negative.
    """

    min_right_iou: float = MIN_RIGHT_IOU

    def __post_init__(self) -> None:
        _check_bound(self.min_right_iou)

    def score(self, episode: FinishedEpisode, *, task: Task, reference: Reference) -> Score:
        """Score a finished episode; `breakdown` has `format`, `correct` and `partial`."""
        wanted = get_wanted_mask(reference)
        ious = [mask_iou(mask, wanted) for mask in episode.masks]
        dice = mask_dice(episode.masks[-1], wanted) if episode.masks else 0.0
        quality = min(1.0, max(0.0, compute_published_quality(ious, dice)))
        correct = QUALITY_WEIGHT * ious[-1] if ious and ious[-1] >= self.min_right_iou else 0.0
        return make_score(
            format=FORMAT_WEIGHT * compute_format(episode),
            correct=correct,
            partial=QUALITY_WEIGHT * quality - correct,
        )


def _check_bound(min_right_iou: float) -> None:
    if not 0 < min_right_iou <= 1:
        raise ValueError(f"min_right_iou must be above 0 and at most 1, got {min_right_iou}")
