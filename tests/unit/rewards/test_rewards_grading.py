import pytest

from medvista_ray.rewards.grading import is_correct, is_valid_answer, parse_number
from medvista_ray.types.messages import Choice, Reference, Task

CLOSED = Task(
    task_id="t", family="f", question="q", images=(),
    choices=(Choice(choice_id="A", text="benign"), Choice(choice_id="B", text="malignant")),
)  # fmt: skip
OPEN = Task(task_id="t", family="f", question="q", images=())


def grade(answer, expected, *, task=CLOSED, tolerance=None):
    return is_correct(answer, task=task, reference=Reference(task_id="t", answer=expected, tolerance=tolerance))


@pytest.mark.parametrize(
    ("answer", "right"),
    [("A", True), (" a\n", True), ("B", False), ("A.", False), ("A or B", False), ("benign", False), ("", False),
     ("the answer is A", False), ("AA", False), ("[A]", False)],
)  # fmt: skip
def test_closed_questions_take_the_choice_id_and_nothing_around_it(answer, right):
    assert grade(answer, "A") is right


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [("12.3", "12.3", True), ("12.3 mm", "12.3", True), ("12.9", "12.3", True), ("12.92", "12.3", False),
     ("-12.3", "12.3", False), ("12.3 cm", "12.3", False), ("12.3 or 99", "12.3", False), ("about 12.3", "12.3", False),
     ("nan", "12.3", False), ("inf", "12.3", False), ("1e999", "12.3", False), ("1.23e1", "12.3", True),
     ("12.3 CM", "12.3 cm", True), ("12.3 mm", "12.3 cm", False), ("0", "0", True), ("0.001", "0", False),
     ("12,3", "12.3", False), ("", "12.3", False), ("9" * 5000, "12.3", False), ("١٢", "12", False)],
)  # fmt: skip
def test_numbers_are_right_within_the_relative_tolerance(answer, expected, right):
    assert grade(answer, expected, task=OPEN, tolerance=0.05) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [("left  Lung", True), ("Left lung.", False), ("the left lung", False), ("lung", False), ("", False)],
)
def test_open_text_is_equal_or_wrong(answer, right):
    assert grade(answer, "left lung", task=OPEN) is right


def test_valid_answers_need_no_reference():
    assert is_valid_answer(" b ", CLOSED)
    assert not is_valid_answer("C", CLOSED)
    assert not is_valid_answer("A B", CLOSED)
    assert is_valid_answer("anything", OPEN)
    assert not is_valid_answer("  ", OPEN)


def test_parse_number_reads_the_whole_text_or_nothing():
    assert parse_number(" +3. mm ") == (3.0, "mm")
    assert parse_number(".5") == (0.5, "")
    assert parse_number("3 mm wide") is None
    assert parse_number("--3") is None
