import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvista_ray.errors import DataError
from medvista_ray.rewards.masks import mask_iou
from medvista_ray.rewards.ophiuchus import OphiuchusPublishedRubric
from medvista_ray.rewards.rubric import FinishedEpisode, ScoredAction
from medvista_ray.rewards.segmentation import (
    SegmentationPublishedRubric,
    SegmentationRubric,
    compute_format,
    compute_published_quality,
)
from medvista_ray.types.messages import ImageRef, Reference, Task

TASK = Task(
    task_id="t", family="f", question="q", images=(ImageRef(digest="0" * 64, width=10, height=10),), answer_kind="mask"
)
WANTED = np.zeros((10, 10), bool)
WANTED[:5] = True
REFERENCE = Reference(task_id="t", answer="", mask=WANTED)
PARTS = {"format", "correct", "partial"}
pixels = st.lists(st.integers(0, 100), max_size=6)


def mask_of(num_pixels):
    """Return the first pixels: up to 50 of them are inside of the wanted mask, the others outside."""
    return (np.arange(100) < num_pixels).reshape(10, 10)


def play(*sizes, stopped=True, well_formed=True, rubric=None):
    actions = tuple(ScoredAction(text=f"add_bbox {size}", is_well_formed=True, used_tool=True) for size in sizes)
    last = ScoredAction(text="stop_action", is_well_formed=well_formed)
    episode = FinishedEpisode(
        actions=(*actions, last), answer="stop_action" if stopped else None, masks=tuple(map(mask_of, sizes))
    )
    return (rubric or SegmentationRubric()).score(episode, task=TASK, reference=REFERENCE)


@pytest.mark.parametrize(
    ("sizes", "stopped", "breakdown"),
    [
        ((50,), True, {"format": 0.2, "correct": 0.8, "partial": 0.0}),
        ((40,), True, {"format": 0.2, "correct": 0.64, "partial": 0.0}),
        ((25,), True, {"format": 0.2, "correct": 0.4, "partial": 0.0}),  # an IoU of 0.5 is right
        ((24,), True, {"format": 0.2, "correct": 0.0, "partial": 0.384}),
        ((10, 40), True, {"format": 0.2, "correct": 0.64, "partial": 0.0}),
        ((40, 10), True, {"format": 0.2, "correct": 0.0, "partial": 0.16}),  # a mask worse than the best was left
        ((50,), False, {"format": 0.1, "correct": 0.8, "partial": 0.0}),
        ((), True, {"format": 0.1, "correct": 0.0, "partial": 0.0}),
        ((), False, {"format": 0.0, "correct": 0.0, "partial": 0.0}),
    ],
)
def test_the_default_pays_format_and_the_mask_that_is_left(sizes, stopped, breakdown):
    result = play(*sizes, stopped=stopped)
    assert result.breakdown == pytest.approx(breakdown)
    assert result.reward == pytest.approx(sum(breakdown.values()))


@settings(max_examples=60, deadline=None)
@given(pixels)
def test_quality_is_the_sum_of_gains_over_the_best_so_far_less_the_fall_from_it(sizes):
    ious = [0.0, *(mask_iou(mask_of(size), WANTED) for size in sizes)]
    best = [max(ious[: turn + 1]) for turn in range(len(ious))]
    gains = sum(after - before for before, after in pairwise(best))
    result = play(*sizes)
    quality = (result.breakdown["correct"] + result.breakdown["partial"]) / 0.8
    assert quality == pytest.approx(gains - (best[-1] - ious[-1]), abs=1e-9)


def test_one_malformed_action_costs_the_format_and_not_the_mask():
    assert play(40, well_formed=False).breakdown == pytest.approx({"format": 0.0, "correct": 0.64, "partial": 0.0})


@pytest.mark.parametrize("rubric", [SegmentationRubric(), SegmentationPublishedRubric(), OphiuchusPublishedRubric()])
def test_an_empty_mask_is_refused_since_doing_nothing_would_be_right(rubric):
    nothing = Reference(task_id="t", answer="", mask=np.zeros((10, 10), bool))
    episode = FinishedEpisode(actions=(ScoredAction(text="stop_action", is_well_formed=True),), answer="stop_action")
    with pytest.raises(DataError, match="task 't' has an empty mask"):
        rubric.score(episode, task=TASK, reference=nothing)


@pytest.mark.parametrize("rubric", [SegmentationRubric(), SegmentationPublishedRubric(), OphiuchusPublishedRubric()])
def test_a_task_without_a_mask_is_refused(rubric):
    episode = FinishedEpisode(actions=())
    with pytest.raises(DataError, match=r"task 't' has no mask.*env\.rubric"):
        rubric.score(episode, task=TASK, reference=Reference(task_id="t", answer=""))


@pytest.mark.parametrize("kind", [SegmentationRubric, SegmentationPublishedRubric])
@pytest.mark.parametrize("bound", [0.0, -1.0, 1.1, math.nan])
def test_the_bound_of_a_right_episode_is_an_iou(kind, bound):
    with pytest.raises(ValueError, match="min_right_iou must be above 0"):
        kind(min_right_iou=bound)


def test_the_bound_of_a_right_episode_can_be_set():
    assert play(40, rubric=SegmentationRubric(min_right_iou=0.9)).breakdown["correct"] == 0.0
    assert play(40, rubric=SegmentationRubric(min_right_iou=0.8)).breakdown["partial"] == 0.0


@pytest.mark.parametrize(
    ("ious", "dice", "quality"),
    [
        ([], 0.0, 0.0),
        ([0.6], 0.75, 0.675),  # one turn: neither penalty nor bonus
        ([0.2, 0.6], 0.75, 0.675 - 0.02 + 0.04),
        ([0.6, 0.2], 1 / 3, 0.1 + 1 / 6 - 0.4 - 0.02),
        ([0.2, 0.6, 0.4, 0.6], 0.75, 0.675 - 0.04 + 0.06),
    ],
)
def test_the_published_quality_is_the_formula(ious, dice, quality):
    assert compute_published_quality(ious, dice) == pytest.approx(quality)


def test_the_published_quality_is_clamped():
    rubric = SegmentationPublishedRubric()
    assert play(10, 50, rubric=rubric).reward == pytest.approx(1.0)
    assert play(50, 5, rubric=rubric).reward == pytest.approx(0.2)


def test_format_has_three_levels():
    mask, stop = (mask_of(1),), {"answer": "stop_action"}
    assert compute_format(FinishedEpisode(actions=(), masks=mask, **stop)) == 1.0
    assert compute_format(FinishedEpisode(actions=(), masks=mask)) == 0.5
    assert compute_format(FinishedEpisode(actions=(), **stop)) == 0.5
    assert compute_format(FinishedEpisode(actions=())) == 0.0


@pytest.mark.parametrize("rubric", [SegmentationRubric(), SegmentationPublishedRubric()])
@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(0, 100), max_size=30), stopped=st.booleans(), well_formed=st.booleans())
def test_the_breakdown_sums_up_and_correct_is_positive_exactly_when_right(rubric, sizes, stopped, well_formed):
    result = play(*sizes, stopped=stopped, well_formed=well_formed, rubric=rubric)
    assert set(result.breakdown) == PARTS
    assert sum(result.breakdown.values()) == result.reward
    assert -1e-9 <= result.reward <= 1 + 1e-9
    right = bool(sizes) and mask_iou(mask_of(sizes[-1]), WANTED) >= 0.5
    assert (result.breakdown["correct"] > 0) is right


def test_the_published_formula_can_be_farmed_by_undoing_and_redoing_a_mask():
    published = SegmentationPublishedRubric()
    honest, farmed = play(40, rubric=published), play(40, 0, 40, 0, 40, rubric=published)
    assert honest.reward == pytest.approx(0.2 + 0.8 * (0.4 + 0.5 * 80 / 90))
    assert farmed.reward == pytest.approx(honest.reward + 0.8 * (0.1 * 1.6 - 0.05))
    assert play(40, 0, 40, 0, 40) == play(40)  # of the default
