"""Nothing that is not a better answer earns more: each default rubric, against the plain honest episode."""

from dataclasses import replace

import numpy as np
import pytest

from medvista_ray.rewards.registry import make_rubric
from medvista_ray.rewards.rubric import FinishedEpisode, ScoredAction
from medvista_ray.types.messages import Choice, ImageRef, Reference, Task

IMAGE = ImageRef(digest="0" * 64, width=200, height=100)
CALL = ScoredAction(text="<think>closer</think><tool_call>zoom</tool_call>", is_well_formed=True, used_tool=True)
PLACEHOLDERS = ("<|image_pad|>", "<|vision_start|><|image_pad|><|vision_end|>", "<|video_pad|>", "<image>")


def answered(answer, *, thought="so", **facts):
    action = ScoredAction(text=f"<think>{thought}</think><answer>{answer}</answer>", is_well_formed=True)
    return FinishedEpisode(actions=(action,), answer=answer, **facts)


def after(episode, *actions):
    return replace(episode, actions=(*actions, *episode.actions))


# --- questions, under `vista`
CLOSED = Task(
    task_id="t", family="f", question="Is it A (benign) or B (malignant)?", images=(IMAGE,),
    choices=(Choice(choice_id="A", text="benign"), Choice(choice_id="B", text="malignant")),
)  # fmt: skip
YES_NO = Task(task_id="t", family="f", question="Is it yes or no?", images=(IMAGE,), answer_kind="choice")
OPEN = Task(task_id="t", family="f", question="Which organ, liver or spleen?", images=(IMAGE,))
NUMBER = Task(
    task_id="t", family="f", question="How long, 12 mm or 13 mm?", images=(IMAGE,), answer_kind="number", unit="mm"
)
LIST = Task(task_id="t", family="f", question="liver, spleen, left to right?", images=(IMAGE,), answer_kind="list")
QUESTIONS = {
    "closed": (CLOSED, Reference(task_id="t", answer="A"), "A", "B"),
    "yes_no": (YES_NO, Reference(task_id="t", answer="yes"), "yes", "no"),
    "open": (OPEN, Reference(task_id="t", answer="liver"), "liver", "spleen"),
    "number": (NUMBER, Reference(task_id="t", answer="12", absolute_tolerance=0.5), "12 mm", "13 mm"),
    "list": (LIST, Reference(task_id="t", answer="", items=("liver", "spleen")), "liver, spleen", "spleen, liver"),
}


def ask(kind, episode):
    task, reference, _, _ = QUESTIONS[kind]
    return make_rubric("vista").score(episode, task=task, reference=reference)


@pytest.mark.parametrize("kind", QUESTIONS)
def test_the_honest_answer_earns_most_and_an_honest_mistake_the_format(kind):
    _, _, right, wrong = QUESTIONS[kind]
    assert ask(kind, answered(right)).reward == 2.0
    assert ask(kind, answered(wrong)).reward == 1.0


@pytest.mark.parametrize("kind", QUESTIONS)
@pytest.mark.parametrize("num_calls", [1, 3, 12])
def test_needless_calls_earn_nothing(kind, num_calls):
    _, _, right, wrong = QUESTIONS[kind]
    for answer in (right, wrong):
        plain = ask(kind, answered(answer)).reward
        same = [CALL] * num_calls
        different = [replace(CALL, text=CALL.text.replace("zoom", f"zoom {index}")) for index in range(num_calls)]
        assert ask(kind, after(answered(answer), *same)).reward <= plain
        assert ask(kind, after(answered(answer), *different)).reward <= plain
    assert ask(kind, FinishedEpisode(actions=(CALL,) * num_calls)).reward < 1.0  # calls and no answer


@pytest.mark.parametrize("kind", QUESTIONS)
def test_who_does_not_know_gains_nothing_by_saying_everything(kind):
    task, _, right, wrong = QUESTIONS[kind]
    mistake = ask(kind, answered(wrong)).reward
    guesses = [
        task.question, f"{right} {wrong}", f"{right}, {wrong}", f"{right} or {wrong}", f"{right}\n{wrong}",
        f"{wrong}/{right}", f"[{right}, {wrong}]", f'["{right}", "{wrong}"]', f"not {wrong} but {right}",
        f"{right} {right}", "A B C D", "yes no", " ".join("ABCDEFGHIJ"), "", " ", "*", ".*",
    ]  # fmt: skip
    for guess in guesses:
        assert ask(kind, answered(guess)).reward <= mistake, guess


@pytest.mark.parametrize("kind", QUESTIONS)
@pytest.mark.parametrize("marker", PLACEHOLDERS)
def test_vision_placeholders_earn_nothing(kind, marker):
    _, _, right, wrong = QUESTIONS[kind]
    honest, mistake = ask(kind, answered(right)).reward, ask(kind, answered(wrong)).reward
    assert ask(kind, answered(right, thought=f"so {marker}")).reward <= honest
    for answer in (marker, f"{wrong}{marker}", f"{marker}{right}", f"{right} {marker}", marker * 50):
        assert ask(kind, answered(answer)).reward <= mistake
        assert ask(kind, answered(wrong, thought=marker * 50)).reward <= mistake


@pytest.mark.parametrize("kind", QUESTIONS)
def test_saying_it_again_earns_nothing(kind):
    task, _, right, _ = QUESTIONS[kind]
    honest = ask(kind, answered(right)).reward
    for thought in (f"it is {right}. " * 30, task.question * 30, "think " * 200):
        assert ask(kind, answered(right, thought=thought)).reward <= honest


# --- outlines, under `segmentation`
OUTLINE = Task(task_id="t", family="f", question="Outline the lesion.", images=(IMAGE,), answer_kind="mask")
LESION = np.zeros((100, 200), bool)
LESION[20:60, 40:80] = True
GOOD = np.zeros_like(LESION)
GOOD[20:60, 40:72] = True
SPOILT = np.zeros_like(LESION)
STOP = ScoredAction(text="<think>done</think><tool_call>stop_action</tool_call>", is_well_formed=True)


def outline(*masks, before=(), stop=STOP):
    prompts = [replace(CALL, text=f"add_point {index}") for index in range(len(masks))]
    episode = FinishedEpisode(actions=(*before, *prompts, stop), answer="stop_action", masks=masks)
    result = make_rubric("segmentation").score(
        episode, task=OUTLINE, reference=Reference(task_id="t", answer="", mask=LESION)
    )
    return result.reward


def test_undoing_and_redoing_a_mask_earns_nothing():
    honest = outline(GOOD)
    assert honest == pytest.approx(0.2 + 0.8 * 0.8)
    assert outline(GOOD, SPOILT, GOOD, SPOILT, GOOD) == honest
    assert outline(GOOD, GOOD, GOOD) == honest
    assert outline(SPOILT, GOOD) == honest
    assert outline(~LESION, GOOD) == honest


def test_a_mask_worse_than_the_best_one_pays_what_it_is_worth():
    assert outline(GOOD, SPOILT) == outline(SPOILT)
    assert outline(LESION, GOOD) == outline(GOOD) < outline(GOOD, LESION)


def test_needless_calls_and_text_earn_nothing_beside_a_mask():
    honest = outline(GOOD)
    assert outline(GOOD, before=(CALL,) * 4) == honest
    for marker in PLACEHOLDERS:
        assert outline(GOOD, stop=replace(STOP, text=STOP.text + marker * 20)) == honest
    assert outline(GOOD, stop=replace(STOP, text=OUTLINE.question)) == honest


def test_the_whole_image_is_worth_its_overlap():
    assert outline(np.ones_like(LESION)) == pytest.approx(0.2 + 0.8 * 0.08)
    assert outline(np.ones_like(LESION)) < outline(GOOD)


# --- boxes, under `grounding`
FIND = Task(task_id="t", family="f", question="Where is the lesion?", images=(IMAGE,), answer_kind="boxes")
TARGET = np.array([[40, 20, 80, 60]], np.float32)
EVIDENCE = np.array([[100, 20, 140, 60], [150, 50, 190, 90]], np.float32)
FOUND, MISSED, EVERYTHING = "[[200, 200, 400, 600]]", "[[600, 200, 800, 600]]", "[[0, 0, 1000, 1000]]"
WHOLE = np.array([[0, 0, 200, 100]], np.float32)
GRID = np.array([[x, y, x + 40, y + 40] for x in range(0, 161, 10) for y in range(0, 61, 10)], np.float32)


def find(answer, *, cited=(), before=(), thought="so", regions=EVIDENCE):
    episode = answered(answer, thought=thought, cited_boxes=np.array(cited, np.float32).reshape(-1, 4))
    reference = Reference(task_id="t", answer="", boxes=TARGET, regions=regions)
    return make_rubric("grounding").score(after(episode, *before), task=FIND, reference=reference).reward


def test_honest_boxes_and_citations_earn_most():
    assert find(FOUND, cited=EVIDENCE) == 4.5 > find(FOUND) == 4.0 > find(MISSED, cited=EVIDENCE) > find(MISSED) == 1.0


@pytest.mark.parametrize("regions", [EVIDENCE, np.zeros((0, 4), np.float32)])
@pytest.mark.parametrize("answer", [FOUND, MISSED])
@pytest.mark.parametrize(
    "cited",
    [WHOLE, GRID, np.concatenate((GRID, EVIDENCE)), np.repeat(WHOLE, 9, axis=0), np.concatenate((WHOLE, WHOLE + 0.1)),
     GRID[:1] + np.linspace(0, 5, 20)[:, None]],
)  # fmt: skip
def test_citing_the_whole_image_or_many_boxes_costs(answer, cited, regions):
    assert find(answer, cited=cited, regions=regions) < find(answer, regions=regions)


def test_repeating_a_citation_or_moving_it_a_little_earns_nothing():
    for honest in (EVIDENCE[:1], EVIDENCE):
        plain = find(FOUND, cited=honest)
        assert find(FOUND, cited=np.repeat(honest, 20, axis=0)) == plain
        assert find(FOUND, cited=np.concatenate((honest, honest + 0.25))) < plain
        assert find(FOUND, cited=np.concatenate((honest, WHOLE))) < plain


def test_many_boxes_or_the_whole_image_as_answer_earn_nothing():
    mistake = find(MISSED)
    every_box = str([[int(x0 * 5), int(y0 * 10), int(x1 * 5), int(y1 * 10)] for x0, y0, x1, y1 in GRID])
    both = "[[200, 200, 400, 600], [600, 200, 800, 600]]"
    twice = "[[200, 200, 400, 600], [200, 200, 400, 600]]"
    for answer in (EVERYTHING, every_box, both, twice, FOUND + MISSED, FIND.question, "[[0, 0, 1000, 1000]]" * 2, ""):
        assert find(answer) <= mistake, answer


def test_needless_calls_and_placeholders_earn_nothing_beside_boxes():
    for answer in (FOUND, MISSED):
        plain = find(answer)
        assert find(answer, before=(CALL,) * 3) <= plain
        for marker in PLACEHOLDERS:
            assert find(answer, thought=marker * 2) <= plain
            assert find(answer + marker) <= find(MISSED)
            assert find(answer, thought=marker * 50) < plain
