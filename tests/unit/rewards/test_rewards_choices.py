import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvista_ray.rewards.choices import find_choice
from medvista_ray.types.messages import Choice


def choices(**texts):
    return tuple(Choice(choice_id=choice_id, text=text) for choice_id, text in texts.items())


CLOSED = choices(A="benign", B="malignant tumour", C="the left lung")


@pytest.mark.parametrize(
    ("answer", "named"),
    [("A", "A"), (" a\n", "A"), ("B", "B"), ("A.", "A"), ("(a)", "A"), ("[A]", "A"), ("benign", "A"), ("Benign.", "A"),
     ("malignant  tumour", "B"), ("A. benign", "A"), ("A: Benign", "A"), ("\uff21", "A"), ("The left lung", "C"),
     ("A or B", None), ("A B", None), ("AA", None), ("A B C", None), ("", None), ("  ", None), (".", None),
     ("the answer is A", None), ("benign malignant tumour", None), ("not benign", None), ("A. malignant tumour", None),
     ("a malignant tumour", None), ("left lung", None), ("D", None), ("benign, not malignant tumour", None)],
)  # fmt: skip
def test_an_answer_names_one_choice_and_nothing_else(answer, named):
    assert find_choice(answer, CLOSED) == named


def test_a_letter_that_is_also_the_text_of_another_choice_means_its_own_choice():
    crossed = choices(A="B", B="A", C="c")
    assert [find_choice(letter, crossed) for letter in "ABC"] == ["A", "B", "C"]
    assert find_choice("(b)", crossed) == "B"


def test_a_text_that_two_choices_share_names_neither():
    same = choices(A="1.5 mm", B="1.5 MM", C="2 mm")
    assert find_choice("1.5 mm", same) is None
    assert find_choice("a", same) == "A"
    assert find_choice("2 mm", same) == "C"


def test_choices_that_differ_in_a_sign_stay_apart():
    signs = choices(A="-5", B="5", C="+", D="-", E="15", F="1.5", G="50%", H="50", I="Rh-", J="Rh", K="Rh+")
    texts = {choice.text: choice.choice_id for choice in signs}
    assert {text: find_choice(text, signs) for text in texts} == texts


@pytest.mark.parametrize(
    ("answer", "named"),
    [("yes", "yes"), ("Yes.", "yes"), ("NO", "no"), ("是", "yes"), ("否。", "no"), ("yes no", None), ("yes, no", None),
     ("y", None), ("not yes", None), ("yesno", None)],
)  # fmt: skip
def test_a_closed_question_without_choices_is_yes_or_no(answer, named):
    assert find_choice(answer, ()) == named


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(min_size=1, max_size=6), min_size=2, max_size=4, unique_by=lambda text: text.strip().casefold())
)
def test_every_id_names_its_choice_whatever_the_texts_are(ids):
    ids = [text for text in ids if text.strip()]
    shown = [Choice(choice_id=text, text=ids[-1 - index]) for index, text in enumerate(ids)]
    assert [find_choice(text, shown) for text in ids] == ids if shown else True
