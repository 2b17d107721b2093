import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvista_ray.rewards.grading import MAX_ANSWER_CHARS, is_correct, is_valid_answer
from medvista_ray.types.messages import Choice, ImageRef, Reference, Task
from tests.fuzz_cases import fuzz_some

IMAGE = ImageRef(digest="0" * 64, width=200, height=100)
MASK = np.eye(3, dtype=bool)


def make_task(**facts):
    return Task(**{"task_id": "t", "family": "f", "question": "q", "images": (IMAGE,), **facts})


def choices(**texts):
    return tuple(Choice(choice_id=choice_id, text=text) for choice_id, text in texts.items())


CLOSED = make_task(choices=choices(A="benign", B="malignant"))
OPEN = make_task()
KINDS = {
    "choice": (CLOSED, Reference(task_id="t", answer="A")),
    "yes_no": (make_task(answer_kind="choice"), Reference(task_id="t", answer="yes")),
    "text": (OPEN, Reference(task_id="t", answer="left lung", aliases=("左肺",))),
    "legacy": (OPEN, Reference(task_id="t", answer="12.3", tolerance=0.05)),
    "number": (
        make_task(answer_kind="number", unit="mm"),
        Reference(task_id="t", answer="12.3", absolute_tolerance=0.5),
    ),
    "boxes": (
        make_task(answer_kind="boxes"),
        Reference(task_id="t", answer="", boxes=np.array([[20, 10, 60, 50]], np.float32)),
    ),
    "list": (make_task(answer_kind="list"), Reference(task_id="t", answer="", items=("liver", "left kidney"))),
    "mask": (make_task(answer_kind="mask"), Reference(task_id="t", answer="", mask=MASK)),
}
RIGHT = {
    "choice": "A", "yes_no": "yes", "text": "left lung", "legacy": "12.3 mm", "number": "1.23 cm",
    "boxes": "[100, 100, 300, 500]", "list": "liver, left kidney",
}  # fmt: skip


def grade(answer, kind):
    task, reference = KINDS[kind]
    return is_correct(answer, task=task, reference=reference)


@pytest.mark.parametrize("kind", sorted(RIGHT))
def test_every_kind_has_an_answer_that_is_right_and_valid(kind):
    assert grade(RIGHT[kind], kind)
    assert is_valid_answer(RIGHT[kind], KINDS[kind][0])


@pytest.mark.parametrize("kind", sorted(RIGHT))
@pytest.mark.parametrize(
    "wrapping",
    ["the answer is {}", "{} or something else", "not {}", "{0} {0}", "{}, perhaps", "{}<|image_pad|>", "<answer>{}",
     "{}\n\nbecause of the dark area", "no, {}", "x{}"],
)  # fmt: skip
def test_an_answer_that_contains_the_label_is_not_right(kind, wrapping):
    assert not grade(wrapping.format(RIGHT[kind]), kind)


@pytest.mark.parametrize("kind", sorted(RIGHT))
def test_what_is_too_long_to_be_an_answer_is_neither_read_nor_right(kind):
    longest = RIGHT[kind].ljust(MAX_ANSWER_CHARS)
    assert is_valid_answer(longest, KINDS[kind][0])
    assert not is_valid_answer(longest + " ", KINDS[kind][0])
    assert not grade(longest + " ", kind)


def test_a_mask_is_not_in_the_answer():
    assert not grade("stop_action", "mask")
    assert is_valid_answer("stop_action", KINDS["mask"][0])


@pytest.mark.parametrize("kind", sorted(KINDS))
@fuzz_some
@given(answer=st.one_of(st.text(max_size=200), st.from_regex(r"[\[\]\d., 1e+-]{0,60}", fullmatch=True)))
def test_no_text_makes_a_grader_raise_and_what_is_right_is_valid(kind, answer):
    valid = is_valid_answer(answer, KINDS[kind][0])
    assert isinstance(valid, bool)
    assert grade(answer, kind) <= valid


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize(
    "answer",
    ["[" * 10_000, "[[" + "9" * 6000 + ", 0, 1, 1]]", "[[1e999, 0, 1, 1]]", "[NaN, 0, 1, 1]", "\ud800", "\x00",
     "9" * 5000, "1e999", '{"a": 1}', "[[true, false, 1, 1]]", "null", "e\u0301" * 5000, "\u0301\u0327" * 2000],
)  # fmt: skip
def test_hostile_texts_are_wrong(kind, answer):
    assert not grade(answer, kind)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=30))
def test_the_reference_itself_is_right_where_it_is_a_text(text):
    reference = Reference(task_id="t", answer=text)
    assert is_correct(text, task=OPEN, reference=reference) is bool(text.strip())


def test_a_kind_that_the_task_names_wins():
    text = make_task(answer_kind="text")
    reference = Reference(task_id="t", answer="12", tolerance=0.5)
    assert not is_correct("13", task=text, reference=reference)
    assert is_correct("13", task=OPEN, reference=reference)
    assert is_correct("13", task=OPEN, reference=Reference(task_id="t", answer="12", absolute_tolerance=1.0))


def test_valid_answers_need_no_reference():
    assert is_valid_answer(" b ", CLOSED)
    assert is_valid_answer("malignant", CLOSED)
    assert not is_valid_answer("C", CLOSED)
    assert not is_valid_answer("A B", CLOSED)
    assert is_valid_answer("anything", OPEN)
    assert not is_valid_answer("  ", OPEN)
    number = KINDS["number"][0]
    assert is_valid_answer("3", number)
    assert not is_valid_answer("3 ml", number)
    assert not is_valid_answer("three", number)
    assert is_valid_answer("[]", KINDS["boxes"][0])
    assert not is_valid_answer("here", KINDS["boxes"][0])
    assert not is_valid_answer(" , ", KINDS["list"][0])
