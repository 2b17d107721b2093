import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvista_ray.rewards.lists import is_right_list, parse_list
from medvista_ray.rewards.text import fold_text, is_same_text, normalize_text, token_f1
from medvista_ray.types.messages import Reference
from tests.fuzz_cases import fuzz_some

words = st.text(alphabet="ab the,.-%A1 左肺\u3000\u0301\u00b2\u207b", max_size=24)


@pytest.mark.parametrize(
    ("text", "normal"),
    [("Left  Lung.", "left lung"), ("the left lung", "left lung"), ("a left lung", "left lung"), ("X-ray", "x ray"),
     ("hepatitis A", "hepatitis a"), ("A", "a"), ("the", "the"), ("A, B", "a b"), ("\uff21\uff22\uff43", "abc"),
     ("ﬁbrosis", "fibrosis"), ("1.5 cm", "1.5 cm"), ("-5", "-5"), ("\u22125", "-5"), ("T-12", "t 12"),
     ("fig.5", "fig 5"), ("50%", "50%"), ("<5 mm", "<5 mm"), ("HER2+", "her2+"),
     ("HER2-", "her2-"), ("(HER2-).", "her2-"),
     ("ER-/PR\u2212, HER2\u2010", "er- pr- her2-"), ("HER2 - ", "her2"), ("A--", "a"), ("-HER2", "her2"),
     ("10\u00b2", "10^2"), ("10^2", "10^2"), ("10\u207b\u00b9\u00b2", "10^-12"), ("5 cm\u00b2", "5 cm2"),
     ("Na\u207a", "na+"), ("CD20\u207b", "cd20-"), ("左肺。", "左肺"),
     ("左 肺", "左肺"), ("左\u3000肺", "左肺"),
     ("CT 图像", "ct 图像"), ("le\u200bft", "left"), ("Straße", "strasse"),
     ("cafe\u0301", "café"), ("...", ""), ("", "")],
)  # fmt: skip
def test_normalising_drops_what_makes_no_difference_and_keeps_what_does(text, normal):
    assert normalize_text(text) == normal


@fuzz_some
@given(st.one_of(words, st.text(max_size=60)))
def test_normalising_twice_changes_nothing(text):
    assert fold_text(fold_text(text)) == fold_text(text)
    assert normalize_text(normalize_text(text)) == normalize_text(text)


@pytest.mark.parametrize(
    ("answer", "right"),
    [("left  Lung", True), ("Left lung.", True), ("the left lung", True), ("LL", True), ("左肺", True),
     ("左肺。", True), ("lung", False), ("left lung field", False), ("left", False), ("", False),
     ("not left lung", False), ("left lung, right lung", False), ("左肺和右肺", False),
     ("肺", False), ("left lung left lung", False)],
)  # fmt: skip
def test_open_text_is_equal_to_the_answer_or_an_alias_or_wrong(answer, right):
    assert is_same_text(answer, ("left lung", "LL", "左肺")) is right


@pytest.mark.parametrize(
    ("one", "other"),
    [("HER2-", "HER2"), ("CD20-", "CD20"), ("Rh-", "Rh"), ("Rh-", "Rh+"), ("ER-, PR-", "ER, PR-"),
     ("10\u00b2", "102"), ("10\u207b\u00b2", "10\u00b2"), ("2 x 10\u2075", "2 x 105")],
)  # fmt: skip
def test_signs_and_exponents_make_another_text(one, other):
    assert not is_same_text(one, [other])
    assert not is_same_text(other, [one])
    assert is_same_text(one, [one])


def test_signs_without_words_are_compared_as_they_stand():
    assert is_same_text(" - ", ["-"])
    assert not is_same_text("-", ["."])
    assert not is_same_text("", [""])


@pytest.mark.parametrize(
    ("answer", "reference", "f1"),
    [("left lung", "left lung", 1.0), ("the left lung", "left lung.", 1.0), ("lung", "left lung", 2 / 3),
     ("a b", "c", 0.0), ("left left", "left", 2 / 3), ("左肺", "左下肺", 0.8), ("", "", 1.0), ("", "lung", 0.0),
     ("...", "", 1.0), ("in the upper lobe of left lung", "left lung", 0.5), ("CT图像", "CT", 0.5)],
)  # fmt: skip
def test_token_f1_counts_common_words(answer, reference, f1):
    assert token_f1(answer, reference) == pytest.approx(f1)


@settings(max_examples=80, deadline=None)
@given(words, words)
def test_token_f1_is_symmetric_within_0_and_1_and_1_for_equal_texts(one, other):
    assert token_f1(one, other) == token_f1(other, one)
    assert 0.0 <= token_f1(one, other) <= 1.0
    assert token_f1(one, one) == 1.0
    assert token_f1(normalize_text(one), other) == token_f1(one, other)


@pytest.mark.parametrize(
    ("text", "items"),
    [("liver, left kidney", ("liver", "left kidney")), ("Liver;left kidney.", ("liver", "left kidney")),
     ("liver\nleft kidney\n", ("liver", "left kidney")), ('["Liver", "left, kidney"]', ("liver", "left kidney")),
     ("[liver, left kidney]", ("liver", "left kidney")), ("[1, 2.5]", ("1", "2.5")),
     ("肝\u3001左肾\uff0c脾\uff1b胃", ("肝", "左肾", "脾", "胃")),
     ("[[1], 2]", ()), ("[null]", ()), ("", ()), (" , ;", ())],
)  # fmt: skip
def test_a_list_is_read_between_separators_or_as_json(text, items):
    assert parse_list(text) == items


@pytest.mark.parametrize(
    ("answer", "right"),
    [("liver, left kidney", True), ("the liver; left kidney", True), ("left kidney, liver", False), ("liver", False),
     ("liver, left kidney, spleen", False), ("liver left kidney", False), ("", False), ("肝、左肾", True)],
)  # fmt: skip
def test_a_list_is_right_with_the_same_items_in_order(answer, right):
    reference = Reference(task_id="t", answer="", items=("Liver", "left kidney"), aliases=("肝\uff0c左肾",))
    assert is_right_list(answer, reference) is right
    assert is_right_list(answer, Reference(task_id="t", answer="liver, left kidney", aliases=("肝、左肾",))) is right


def test_nothing_is_no_list():
    assert not is_right_list("", Reference(task_id="t", answer=""))
