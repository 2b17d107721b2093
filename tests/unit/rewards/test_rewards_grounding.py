import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvista_ray.errors import DataError
from medvista_ray.rewards.grounding import GroundingRubric, compute_citations
from medvista_ray.rewards.rubric import FinishedEpisode, ScoredAction
from medvista_ray.types.messages import ImageRef, Reference, Task

IMAGE = ImageRef(digest="0" * 64, width=200, height=100)
TASK = Task(task_id="t", family="f", question="q", images=(IMAGE,), answer_kind="boxes")
TARGET = [20, 10, 60, 50]  # pixels; [100, 100, 300, 500] in thousandths
REGIONS = np.array([[100, 20, 140, 60], [150, 50, 190, 90]], np.float32)
REFERENCE = Reference(task_id="t", answer="", boxes=np.array([TARGET], np.float32), regions=REGIONS)
RIGHT = "[[100, 100, 300, 500]]"
PARTS = {"repetition", "format", "correct", "citations"}


def play(answer=RIGHT, *, cited=(), well_formed=True, text="", reference=REFERENCE, task=TASK):
    actions = (ScoredAction(text=f"<think>{text}</think><answer>{answer}</answer>", is_well_formed=well_formed),)
    episode = FinishedEpisode(
        actions=actions, answer=answer, cited_boxes=np.array(cited, np.float32).reshape(-1, 4)
    )  # fmt: skip
    return GroundingRubric().score(episode, task=task, reference=reference)


@pytest.mark.parametrize(
    ("answer", "correct"),
    [(RIGHT, 3.0), ("[100, 100, 300, 500]", 3.0), ("[100, 100, 250, 500]", 2.0), ("[100, 100, 220, 500]", 1.0),
     ("[100, 100, 200, 500]", 0.0), ("[[100, 100, 300, 500], [0, 0, 50, 50]]", 0.0), ("[]", 0.0), ("upper left", 0.0)],
)  # fmt: skip
def test_boxes_are_paid_by_tiers(answer, correct):
    result = play(answer)
    assert result.breakdown == {"repetition": 0.0, "format": 1.0, "correct": correct, "citations": 0.0}
    assert result.reward == 1.0 + correct


def test_repetition_and_format_go_first():
    assert play(well_formed=False).breakdown == {"repetition": 0.0, "format": -1.0, "correct": 0.0, "citations": 0.0}
    assert play(well_formed=False, cited=REGIONS).reward == -1.0
    assert play(text="no " * 20).breakdown == {"repetition": -1.5, "format": 0.0, "correct": 0.0, "citations": 0.0}
    assert play(text="no " * 400, cited=REGIONS).reward == -3.0
    no_answer = FinishedEpisode(actions=(), answer=None, cited_boxes=REGIONS)
    assert GroundingRubric().score(no_answer, task=TASK, reference=REFERENCE).reward == -1.0


def test_an_answer_that_is_too_long_is_not_read():
    assert play(RIGHT + " " * 20_000).breakdown["correct"] == 0.0


@pytest.mark.parametrize(
    ("cited", "citations"),
    [
        ((), 0.0),
        (REGIONS, 0.5),
        (REGIONS[:1], 0.25),
        (REGIONS[[0, 0, 0]], 0.25),  # the same box counts once
        ([REGIONS[0], REGIONS[0] + 0.25], 0.0),  # nearly the same box: one of the two is wrong
        ([*REGIONS, [0, 0, 10, 10]], 0.5 / 3),
        ([[0, 0, 10, 10]], -0.25),
        ([[0, 0, 200, 100]], -0.25),
        ([TARGET], -0.25),  # where there are regions, the answer is no evidence
    ],
)
def test_cited_boxes_are_checked_against_regions(cited, citations):
    assert play(cited=cited).breakdown["citations"] == pytest.approx(citations)


def test_without_regions_the_boxes_are_the_evidence():
    reference = Reference(task_id="t", answer="", boxes=REFERENCE.boxes)
    assert play(cited=[TARGET], reference=reference).breakdown["citations"] == 0.5
    assert play(cited=[[0, 0, 10, 10]], reference=reference).breakdown["citations"] == -0.5


def test_nothing_to_find_is_answered_by_no_box_and_no_citation():
    nothing = Reference(task_id="t", answer="")
    assert play("[]", reference=nothing).reward == 4.0
    assert play("[]", cited=[TARGET], reference=nothing).breakdown["citations"] == -0.5


def cite(cited, regions):
    return compute_citations(np.array(cited, np.float64), np.array(regions, np.float64), image_px=(200, 100))


SMALL = [150, 85, 190, 99]


@pytest.mark.parametrize("height", [51, 60, 78, 81, 90, 100])  # per cent of the image
def test_a_large_region_neither_pays_nor_costs(height):
    large = [0, 0, 200, height]
    assert cite([large], [large]) == 0.0
    assert cite([[0, 0, 200, 100]], [large]) == 0.0  # the whole image is no evidence, where it is not wrong either
    assert cite([large, SMALL], [large, SMALL]) == cite([SMALL], [large, SMALL]) == 1.0
    assert cite([large], [large, SMALL]) == 0.0
    assert cite([large, [0, 0, 10, 10]], [large]) == -1.0
    assert cite([large, [0, 0, 199, height]], [large]) == -1.0  # put aside once for a region


def test_the_whole_image_is_wrong_where_it_matches_no_region():
    assert cite([[0, 0, 200, 100]], [[0, 0, 200, 50]]) == -1.0
    assert cite([[0, 0, 200, 100]], [SMALL]) == -1.0


@pytest.mark.parametrize("share", [0.1, 0.3, 0.41, 0.5, 0.6, 0.79, 0.9, 1.0])
def test_a_constant_box_over_most_of_the_image_never_pays(share):
    assert cite([[0, 0, 200, 79]], [[0, 0, 200, 100 * share]]) <= 0.0


def test_a_citation_a_little_larger_than_what_can_pay_costs_nothing():
    assert cite([[0, 0, 200, 49]], [[0, 0, 200, 49]]) == 1.0
    assert cite([[0, 0, 200, 51]], [[0, 0, 200, 49]]) == 0.0


@pytest.mark.parametrize(
    "task",
    [Task(task_id="t", family="f", question="q", images=(IMAGE,)),
     Task(task_id="t", family="f", question="q", images=(), answer_kind="boxes")],
)  # fmt: skip
def test_a_task_without_boxes_to_find_is_refused(task):
    with pytest.raises(DataError, match=r"task 't' asks for no boxes.*env\.rubric"):
        play(task=task)


numbers = st.floats(0, 1000, allow_nan=False)
box = st.tuples(numbers, numbers, numbers, numbers).map(
    lambda b: [min(b[0], b[2]), min(b[1], b[3]), *np.maximum(b[:2], b[2:])]
)


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.just(RIGHT), st.text(max_size=20)), st.lists(box, max_size=5), st.booleans())
def test_the_breakdown_sums_up_within_its_bounds(answer, cited, well_formed):
    result = play(answer, cited=cited, well_formed=well_formed)
    assert set(result.breakdown) == PARTS
    assert sum(result.breakdown.values()) == result.reward
    assert (result.breakdown["correct"] > 0) == (answer == RIGHT and well_formed)
    assert -0.5 <= result.breakdown["citations"] <= 0.5


@settings(max_examples=60, deadline=None)
@given(st.lists(box, min_size=1, max_size=5), st.integers(0, 2))
def test_more_citations_never_earn_more_than_the_right_ones_alone(extra, num_right):
    right = [list(map(float, region)) for region in REGIONS[:num_right]]
    alone = compute_citations(np.array(REGIONS), REGIONS, image_px=(200, 100))
    more = compute_citations(np.array([*right, *extra]), REGIONS, image_px=(200, 100))
    assert -1.0 <= more <= alone == 1.0


@settings(max_examples=60, deadline=None)
@given(st.lists(box, min_size=1, max_size=5), st.data())
def test_an_honest_citation_never_costs(regions, data):
    regions = np.array([region for region in regions if region[0] < region[2] and region[1] < region[3]])
    regions = np.unique(regions.reshape(-1, 4), axis=0)
    keep = data.draw(st.lists(st.booleans(), min_size=len(regions), max_size=len(regions)))
    cited = regions[np.array(keep, bool)]
    assert compute_citations(cited, regions, image_px=(1000, 1000)) >= 0.0
