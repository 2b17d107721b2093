"""The default rubric of grounding: the levels of VISTA-Gym, IoU tiers for the boxes, and the places that were cited.

Repetition and format: as in VISTA-Gym (arXiv 2511.19773), with their priority. Boxes: 3, 2, 1 or 0 by IoU, as in
Ophiuchus (arXiv 2512.14157), over the box score of `boxes.py`. Checking cited boxes against regions is the idea of
GEMeX-RMCoT (arXiv 2506.17939); how they are paid is our choice:

- a cited box is right when it is paired one to one with a region, at an IoU above 0.5, and covers at most 80% of
  image 0;
- the part is 0.5 x (right - wrong) / max(cited, regions): +0.5 when all regions are cited and nothing else, 0 without
  a citation, towards -0.5 for wrong ones. A guess pays only if it is more often right than not;
- the same box again counts once, a nearly equal one as wrong, and the whole image is never evidence. So citing more,
  larger or the same boxes never earns more than citing what is there, and at most half a tier in all.

No published formula of GEMeX-RMCoT is known to us, so there is no `grounding_published`; the published tiers of
Ophiuchus, with a tool bonus that can be farmed, are `ophiuchus_published`.
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
MAX_EVIDENCE_SHARE = 0.8  # of the area of image 0: a larger box points at nothing


def compute_citations(cited: np.ndarray, regions: np.ndarray, *, image_px: tuple[int, int]) -> float:
    """Return (right - wrong) / max(cited, regions) of boxes [K, 4] and [M, 4] in pixels, -1.0 to 1.0.

    Args:
        cited: the same box twice counts once.
        regions: where the evidence is.
        image_px: width and height of image 0.
    """
    if not len(cited):
        return 0.0
    cited = np.unique(np.asarray(cited, np.float64), axis=0)
    overlap = box_iou(cited, regions)
    areas = np.prod(cited[:, 2:] - cited[:, :2], axis=1)
    overlap[(areas > MAX_EVIDENCE_SHARE * image_px[0] * image_px[1]), :] = 0.0
    overlap[overlap <= MIN_RIGHT_IOU] = 0.0
    pairs = match_boxes(overlap)
    num_right = int(np.count_nonzero(overlap[pairs[:, 0], pairs[:, 1]]))
    return (2 * num_right - len(cited)) / max(len(cited), len(regions))


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
