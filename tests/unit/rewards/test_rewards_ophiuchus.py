import numpy as np
import pytest

from medvista_ray.rewards.ophiuchus import OphiuchusPublishedRubric
from medvista_ray.rewards.rubric import FinishedEpisode, ScoredAction
from medvista_ray.types.messages import Choice, ImageRef, Reference, Task

IMAGE = ImageRef(digest="0" * 64, width=1000, height=1000)
CHOICES = (Choice(choice_id="A", text="yes"), Choice(choice_id="B", text="no"))
CLOSED = Task(task_id="t", family="f", question="q", images=(IMAGE,), choices=CHOICES)
BOXES = Task(task_id="t", family="f", question="q", images=(IMAGE,), answer_kind="boxes")
MASK = Task(task_id="t", family="f", question="q", images=(IMAGE,), answer_kind="mask")
CALL = ScoredAction(text="<think>look</think><tool_call>{}</tool_call>", is_well_formed=True, used_tool=True)
FAILED_CALL = ScoredAction(text="<think>look</think><tool_call>{}</tool_call>", is_well_formed=True)
PARTS = {"correct", "format", "tool_bonus"}


def play(answer, *before, task=CLOSED, reference=None, well_formed=True, masks=()):
    last = ScoredAction(text=f"<think>so</think><answer>{answer}</answer>", is_well_formed=well_formed)
    episode = FinishedEpisode(actions=(*before, last), answer=answer, masks=masks)
    result = OphiuchusPublishedRubric().score(
        episode, task=task, reference=reference or Reference(task_id="t", answer="A")
    )
    assert set(result.breakdown) == PARTS
    assert sum(result.breakdown.values()) == result.reward
    return result


@pytest.mark.parametrize(
    ("answer", "before", "well_formed", "reward"),
    [("A", (), True, 2.0), ("B", (), True, 1.0), ("A", (CALL,), True, 4.0), ("B", (CALL,), True, 1.0),
     ("A", (FAILED_CALL,), True, 2.0), ("A", (CALL,), False, 3.0),
     (None, (CALL,), True, 0.0), ("A" * 20_000, (), True, 1.0)],
)  # fmt: skip
def test_answer_format_and_tool_bonus_are_added(answer, before, well_formed, reward):
    result = play(answer, *before, well_formed=well_formed)
    assert result.reward == reward
    assert (result.breakdown["correct"] > 0) == (answer == "A")


@pytest.mark.parametrize(
    ("box", "tier"),
    [("[0, 0, 100, 81]", 3.0), ("[0, 0, 100, 80]", 2.0), ("[0, 0, 100, 70]", 1.0), ("[0, 0, 100, 50]", 0.0)],
)
def test_boxes_are_paid_by_tiers(box, tier):
    reference = Reference(task_id="t", answer="", boxes=np.array([[0, 0, 100, 100]], np.float32))
    assert play(box, CALL, task=BOXES, reference=reference).breakdown == {
        "correct": tier, "format": 1.0, "tool_bonus": 2.0 if tier else 0.0
    }  # fmt: skip


def test_the_last_mask_is_paid_by_tiers():
    wanted = np.ones((4, 4), bool)
    half, most = wanted.copy(), wanted.copy()
    half[:2] = most[0, 0] = False
    reference = Reference(task_id="t", answer="", mask=wanted)
    correct = [
        play("stop_action", CALL, task=MASK, reference=reference, masks=masks).breakdown["correct"]
        for masks in ((half, most), (most, half), ())
    ]
    assert correct == [3.0, 0.0, 0.0]


def test_the_published_formula_can_be_farmed_by_a_needless_call():
    assert play("A", CALL).reward == 2 * play("A").reward
    reference = Reference(task_id="t", answer="", boxes=np.array([[0, 0, 100, 100]], np.float32))
    best = "[0, 0, 100, 100]"
    assert play(best, task=BOXES, reference=reference).reward == 4.0
    assert play(best, CALL, task=BOXES, reference=reference).reward == 6.0
