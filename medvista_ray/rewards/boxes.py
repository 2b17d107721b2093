"""Boxes as text, their overlap, and how well one set of boxes finds another. Boxes are x0 y0 x1 y1; knows no rubric.

N, M = boxes of two sets.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from medvista_ray.types.messages import Reference, Task

MAX_BOXES = 256  # of one answer; the matching is cubic
MIN_RIGHT_IOU = 0.5  # an answer is right above it: the lowest of the tiers
# (IoU above which a tier holds, what it pays), best first.
# Ophiuchus (arXiv 2512.14157): its tiers; for boxes our choice.
IOU_TIERS = ((0.8, 3.0), (0.7, 2.0), (MIN_RIGHT_IOU, 1.0))


def parse_boxes(text: str) -> np.ndarray | None:
    """Read a JSON list of boxes [x0, y0, x1, y1], or one such box: float64 [N, 4] in thousandths, 0 to 1000.

    None when the text is anything else, when a box is empty or outside, or with more than `MAX_BOXES`.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, list):
        return None
    boxes = [value] if value and not isinstance(value[0], list) else value
    if len(boxes) > MAX_BOXES or not all(map(_is_box, boxes)):
        return None
    return np.array(boxes, np.float64).reshape(-1, 4)


def box_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the intersection over union of every pair, float64 [N, M]; a box without area meets nothing."""
    boxes, others = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(others, np.float64).reshape(-1, 4)
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0.0, None), axis=2)
    union = _areas(boxes)[:, None] + _areas(others)[None, :] - shared
    iou: np.ndarray = np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)
    return iou


def match_boxes(overlap: np.ndarray) -> np.ndarray:
    """Pair rows and columns of an overlap [N, M] one to one, with the largest sum: int [min(N, M), 2]."""
    if overlap.shape[0] > overlap.shape[1]:
        return match_boxes(overlap.T)[:, ::-1]
    columns = _assign(-overlap)
    return np.stack((np.arange(len(columns)), columns), axis=1)


def compute_box_score(boxes: np.ndarray, wanted: np.ndarray) -> float:
    """Return the sum of IoU over the best one-to-one pairs over max(N, M), 0.0 to 1.0; 1.0 when both are empty.

    Our choice of a mean for several boxes: what is missing and what is too much counts as a pair without overlap.
    """
    if not len(boxes) and not len(wanted):
        return 1.0
    overlap = box_iou(boxes, wanted)
    pairs = match_boxes(overlap)
    return float(overlap[pairs[:, 0], pairs[:, 1]].sum()) / max(len(boxes), len(wanted))


def grade_boxes(answer: str, *, task: Task, reference: Reference) -> float:
    """Return the box score of an answer in thousandths against the reference in pixels; 0.0 when it is unreadable."""
    boxes, side_px = parse_boxes(answer), first_image_px(task)
    if boxes is None or side_px is None:
        return 0.0
    return compute_box_score(boxes * np.array(side_px * 2) / 1000, reference.boxes)


def pay_tier(iou: float) -> float:
    """Return 3.0, 2.0 or 1.0 for an IoU above 0.8, 0.7 or 0.5, else 0.0."""
    return next((pay for bound, pay in IOU_TIERS if iou > bound), 0.0)


def first_image_px(task: Task) -> tuple[int, int] | None:
    """Return width and height of image 0; None without images."""
    return (task.images[0].width, task.images[0].height) if task.images else None


def _is_box(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 4:
        return False
    if not all(isinstance(side, int | float) and not isinstance(side, bool) and 0 <= side <= 1000 for side in value):
        return False
    return bool(value[0] < value[2] and value[1] < value[3])


def _areas(boxes: np.ndarray) -> np.ndarray:
    sides = np.clip(boxes[:, 2:] - boxes[:, :2], 0.0, None)
    return np.asarray(sides[:, 0] * sides[:, 1])


def _assign(cost: np.ndarray) -> np.ndarray:
    """Return the column of every row in the cheapest one-to-one assignment of a cost [N, M] with N <= M.

    The Hungarian method with row and column potentials: one shortest augmenting path for each row.
    """
    num_rows, num_columns = cost.shape
    row_potential, column_potential = np.zeros(num_rows), np.zeros(num_columns + 1)
    row_of = np.full(num_columns + 1, -1)  # the last column is where a path starts
    for row in range(num_rows):
        row_of[-1], column = row, num_columns
        slack, came_from = np.full(num_columns, np.inf), np.full(num_columns, -1)
        is_done = np.zeros(num_columns + 1, bool)
        while row_of[column] >= 0:
            is_done[column] = True
            here = row_of[column]
            reduced = cost[here] - row_potential[here] - column_potential[:-1]
            better = ~is_done[:-1] & (reduced < slack)
            slack[better], came_from[better] = reduced[better], column
            following = int(np.argmin(np.where(is_done[:-1], np.inf, slack)))
            step = slack[following]
            row_potential[row_of[is_done]] += step
            column_potential[is_done] -= step
            slack[~is_done[:-1]] -= step
            column = following
        while column != num_columns:
            before = int(came_from[column])
            row_of[column], column = row_of[before], before
    columns = np.empty(num_rows, np.int64)
    columns[row_of[:-1][row_of[:-1] >= 0]] = np.flatnonzero(row_of[:-1] >= 0)
    return columns
