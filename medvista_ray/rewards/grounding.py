"""The default rubric of grounding: the levels of VISTA-Gym, IoU tiers for the boxes, and the places that were cited.

Repetition and format: as in VISTA-Gym (arXiv 2511.19773), with their priority. Boxes: 3, 2, 1 or 0 by IoU, over the box
score of `boxes.py`. Ophiuchus (arXiv 2512.14157): its tiers; for boxes our choice. Checking cited boxes against regions
is the idea of GEMeX-RMCoT (arXiv 2506.17939); how they are paid is our choice:

- a region or a cited box of more than half of image 0 points at nothing: a constant one would be right too often.
  Neither pays: such a region is not counted, and a cited box that matches it, or a larger box that matches any region,
  is put aside, one for each region. So an honest citation never costs;
- a cited box is right when it is paired one to one with a region that is counted, at an IoU above 0.5; one that is
  neither right nor put aside is wrong;
- the part is 0.5 x (right - wrong) / max(right + wrong, counted regions): +0.5 when all of them are cited and nothing
  else, 0 without a citation, towards -0.5 for wrong ones. A guess pays only if it is more often right than not;
- the same box again counts once, a nearly equal one as wrong, and the whole image never pays. So citing more, larger or
  the same boxes never earns more than citing what is there, and at most half a tier in all.

No published formula of GEMeX-RMCoT is known to us, so there is no `grounding_published`; the formula of Ophiuchus, with
a tool bonus that can be farmed, is `ophiuchus_published`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medvista_ray.errors import DataError
from medvista_ray.rewards.boxes import MIN_RIGHT_IOU, box_iou, first_image_px, grade_boxes, match_boxes, pay_tier
from medvista_ray.rewards.grading import MAX_ANSWER_CHARS
from medvista_ray.rewards.rubric import FinishedEpisode, Score, make_score
from medvista_ray.rewards.vista import WELL_FORMED, compute_episode_repetition, compute_format
from medvista_ray.types.messages import Reference, Task

CITATION_WEIGHT = 0.5
MAX_EVIDENCE_SHARE = 0.5  # of the area of image 0: a larger box or region points at nothing


def compute_citations(cited: np.ndarray, regions: np.ndarray, *, image_px: tuple[int, int]) -> float:
    """Return (right - wrong) / max(right + wrong, counted regions) of boxes [K, 4] and [M, 4] in pixels, -1.0 to 1.0.

    Args:
        cited: the same box twice counts once.
        regions: where the evidence is.
        image_px: width and height of image 0.
    """
    if not len(cited):
        return 0.0
    cited = np.unique(np.asarray(cited, np.float64), axis=0)
    regions = np.asarray(regions, np.float64).reshape(-1, 4)
    is_large_region = _is_large(regions, image_px)
    overlap = box_iou(cited, regions)
    overlap[overlap <= MIN_RIGHT_IOU] = 0.0
    points_nowhere = _is_large(cited, image_px)[:, None] | is_large_region[None, :]
    is_right = _is_paired(np.where(points_nowhere, 0.0, overlap))
    is_aside = _is_paired(np.where(points_nowhere & ~is_right[:, None], overlap, 0.0))
    num_right, num_counted = int(is_right.sum()), int((~is_aside).sum())
    most = max(num_counted, int((~is_large_region).sum()))
    return (2 * num_right - num_counted) / most if most else 0.0


def _is_large(boxes: np.ndarray, image_px: tuple[int, int]) -> np.ndarray:
    areas: np.ndarray = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return areas > MAX_EVIDENCE_SHARE * image_px[0] * image_px[1]


def _is_paired(overlap: np.ndarray) -> np.ndarray:
    """Return which rows have a partner in the best one-to-one pairs, bool [K]."""
    pairs = match_boxes(overlap)
    is_paired = np.zeros(len(overlap), bool)
    is_paired[pairs[:, 0]] = overlap[pairs[:, 0], pairs[:, 1]] > 0
    return is_paired


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundingRubric:
    """R_rep if it is not zero, else -1 if not well-formed, else 1 + tier (3, 2, 1, 0) + citations (-0.5 to 0.5)."""

    def score(self, episode: FinishedEpisode, *, task: Task, reference: Reference) -> Score:
        """Score a finished episode; `breakdown` has `repetition`, `format`, `correct` and `citations`."""
        image_px = first_image_px(task)
        if task.answers_with != "boxes" or image_px is None:
            raise DataError(f"task {task.task_id!r} asks for no boxes in an image: env.rubric has to be another one")
        if repetition := compute_episode_repetition(episode):
            return make_score(repetition=repetition, format=0.0, correct=0.0, citations=0.0)
        form = compute_format(episode)
        if form != WELL_FORMED or episode.answer is None:
            return make_score(repetition=0.0, format=form, correct=0.0, citations=0.0)
        is_read = len(episode.answer) <= MAX_ANSWER_CHARS
        regions = reference.regions if len(reference.regions) else reference.boxes
        return make_score(
            repetition=0.0,
            format=form,
            correct=pay_tier(grade_boxes(episode.answer, task=task, reference=reference)) if is_read else 0.0,
            citations=CITATION_WEIGHT * compute_citations(episode.cited_boxes, regions, image_px=image_px),
        )
