import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvista_ray.rewards.boxes import (
    MAX_BOXES,
    box_iou,
    compute_box_score,
    grade_boxes,
    match_boxes,
    parse_boxes,
    pay_tier,
)
from medvista_ray.rewards.masks import mask_dice, mask_iou
from medvista_ray.types.messages import ImageRef, Reference, Task

side = st.integers(0, 9)
box = st.tuples(side, side, st.integers(1, 9), st.integers(1, 9)).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
boxes = st.lists(box, max_size=4).map(lambda values: np.array(values, np.float64).reshape(-1, 4))
mask = st.integers(0, 2**9 - 1).map(
    lambda bits: np.array([bits >> place & 1 for place in range(9)], bool).reshape(3, 3)
)


@pytest.mark.parametrize(
    ("text", "rows"),
    [("[[0, 0, 10, 20]]", [[0, 0, 10, 20]]), (" [0,0,10,20]\n", [[0, 0, 10, 20]]), ("[]", []),
     ("[0, 0, 0.5, 1000]", [[0, 0, 0.5, 1000]]), ("[[0,0,1,1],[0,0,1,1]]", [[0, 0, 1, 1], [0, 0, 1, 1]])],
)  # fmt: skip
def test_boxes_are_a_json_list_or_one_flat_box(text, rows):
    parsed = parse_boxes(text)
    assert parsed is not None
    assert parsed.shape == (len(rows), 4)
    assert parsed.tolist() == rows


@pytest.mark.parametrize(
    "text",
    ["", "here", "0, 0, 10, 20", "[0, 0, 10]", "[[0, 0, 10, 20], 5]", "[0, 0, 10, 20] or [1, 1, 2, 2]",
     "[0, 0, 10, 1001]",
     "[-1, 0, 10, 20]", "[10, 0, 10, 20]", "[20, 0, 10, 20]", '["0", 0, 10, 20]', "[true, 0, 10, 20]", "[NaN, 0, 1, 1]",
     "[0, 0, Infinity, 1]", "[0, 0, 1e999, 1]", "[0, 0, " + "9" * 400 + ", 1]", '{"box": [0, 0, 1, 1]}',
     "[[[0, 0, 1, 1]]]", "null", str([[0, 0, 1, 1]] * (MAX_BOXES + 1))],
)  # fmt: skip
def test_everything_else_is_no_boxes(text):
    assert parse_boxes(text) is None


def test_iou_of_known_boxes():
    one = np.array([[0, 0, 10, 10], [5, 5, 5, 9]])
    other = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]])
    assert box_iou(one, other) == pytest.approx(np.array([[1, 1 / 3, 0], [0, 0, 0]]))
    assert box_iou(np.zeros((0, 4)), other).shape == (0, 3)


@settings(max_examples=60, deadline=None)
@given(boxes, boxes)
def test_iou_is_symmetric_and_does_not_change_with_the_unit(one, other):
    overlap = box_iou(one, other)
    assert overlap == pytest.approx(box_iou(other, one).T)
    assert np.all((overlap >= 0) & (overlap <= 1))
    scale = np.array([0.3, 7.0, 0.3, 7.0])
    assert overlap == pytest.approx(box_iou(one * scale, other * scale))
    assert np.diag(box_iou(one, one)) == pytest.approx(np.ones(len(one)))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 4), st.integers(0, 5), st.randoms(use_true_random=False))
def test_matching_finds_the_largest_sum(num_rows, num_columns, random):
    overlap = np.array(
        [[random.choice([0.0, 0.25, random.random()]) for _ in range(num_columns)] for _ in range(num_rows)]
    )
    overlap = overlap.reshape(num_rows, num_columns)
    pairs = match_boxes(overlap)
    size = min(num_rows, num_columns)
    assert pairs.shape == (size, 2)
    assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == size
    best = max(
        sum(overlap[row, column] for row, column in zip(rows, columns, strict=True))
        for rows in itertools.combinations(range(num_rows), size)
        for columns in itertools.permutations(range(num_columns), size)
    )
    assert overlap[pairs[:, 0], pairs[:, 1]].sum() == pytest.approx(best)


@settings(max_examples=60, deadline=None)
@given(boxes, boxes)
def test_the_box_score_is_symmetric_and_1_for_the_same_boxes_in_any_order(one, other):
    score = compute_box_score(one, other)
    assert 0 <= score <= 1
    assert score == pytest.approx(compute_box_score(other, one))
    assert compute_box_score(one, one[::-1]) == pytest.approx(1.0)


def test_what_is_missing_and_what_is_too_much_lowers_the_score():
    wanted = np.array([[0, 0, 10, 10], [50, 50, 60, 60]])
    assert compute_box_score(wanted[:1], wanted) == 0.5
    assert compute_box_score(np.concatenate((wanted, wanted)), wanted) == 0.5
    assert compute_box_score(np.zeros((0, 4)), wanted) == 0.0
    assert compute_box_score(np.zeros((0, 4)), np.zeros((0, 4))) == 1.0


def test_answers_are_in_thousandths_and_references_in_pixels_of_image_0():
    image = ImageRef(digest="0" * 64, width=200, height=50)
    task = Task(task_id="t", family="f", question="q", images=(image,), answer_kind="boxes")
    reference = Reference(task_id="t", answer="", boxes=np.array([[20, 5, 60, 25]], np.float32))
    assert grade_boxes("[100, 100, 300, 500]", task=task, reference=reference) == pytest.approx(1.0)
    assert grade_boxes("[20, 5, 60, 25]", task=task, reference=reference) == 0.0
    assert grade_boxes("nowhere", task=task, reference=reference) == 0.0
    nothing = Reference(task_id="t", answer="")
    assert grade_boxes("[]", task=task, reference=nothing) == 1.0
    assert grade_boxes("[0, 0, 1, 1]", task=task, reference=nothing) == 0.0


@pytest.mark.parametrize(
    ("iou", "pay"), [(1.0, 3), (0.81, 3), (0.8, 2), (0.71, 2), (0.7, 1), (0.51, 1), (0.5, 0), (0.0, 0)]
)
def test_tiers_hold_above_their_bound(iou, pay):
    assert pay_tier(iou) == pay


def test_iou_and_dice_of_known_masks():
    one, other = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
    assert mask_iou(one, other) == mask_dice(one, other) == 1.0
    one[0] = True
    assert mask_iou(one, other) == mask_dice(one, other) == 0.0
    other[:, :2] = True
    assert mask_iou(one, other) == 2 / 6
    assert mask_dice(one, other) == 4 / 8
    with pytest.raises(ValueError, match="unequal shapes"):
        mask_iou(one, other.T)


@settings(max_examples=60, deadline=None)
@given(mask, mask)
def test_overlap_of_masks_is_symmetric_and_dice_follows_from_iou(one, other):
    iou, dice = mask_iou(one, other), mask_dice(one, other)
    assert (iou, dice) == (mask_iou(other, one), mask_dice(other, one))
    assert dice == pytest.approx(2 * iou / (1 + iou))
    assert mask_iou(one, one) == 1.0
