import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvista_ray.rewards.repetition import compute_loop_excess
from medvista_ray.rewards.rubric import FinishedEpisode, ScoredAction
from medvista_ray.rewards.vista import VistaRubric, compute_repetition
from medvista_ray.types.messages import Choice, Reference, Task

TASK = Task(
    task_id="t", family="f", question="q", images=(),
    choices=tuple(Choice(choice_id=letter, text=letter) for letter in "LTXJ"),
)  # fmt: skip
REFERENCE = Reference(task_id="t", answer="L")
CALL = '<think>look {}</think><tool_call>{{"name":"zoom","arguments":{{"bbox":[{},0,667,333]}}}}</tool_call>'
LEVELS = {2.0, 1.0, -1.0, -1.5, -2.0, -3.0}


def score(*actions, answer=None, malformed=()):
    scored = tuple(ScoredAction(text=text, is_well_formed=index not in malformed) for index, text in enumerate(actions))
    return VistaRubric().score(FinishedEpisode(actions=scored, answer=answer), task=TASK, reference=REFERENCE)


def answer_text(letter):
    return f"<think>it is {letter}</think><answer>{letter}</answer>"


def test_a_right_answer_earns_two_and_says_why():
    result = score(CALL.format("here", 333), answer_text("L"), answer="L")
    assert result.reward == 2.0
    assert result.breakdown == {"repetition": 0.0, "format": 1.0, "correct": 1.0}


def test_calls_earn_nothing_by_themselves():
    without = score(answer_text("L"), answer="L")
    for count in range(1, 5):
        calls = [CALL.format(number, number) for number in range(count)]
        assert score(*calls, answer_text("L"), answer="L") == without
        assert score(*calls, answer_text("T"), answer="T").reward == 1.0
        assert score(*calls).reward == -1.0


def test_one_malformed_turn_costs_the_answer_too():
    result = score("<think>", answer_text("L"), answer="L", malformed={0})
    assert result.breakdown == {"repetition": 0.0, "format": -1.0, "correct": 0.0}
    assert score("nonsense", malformed={0}).reward == -1.0


@pytest.mark.parametrize(("words", "penalty"), [(5, 0.0), (20, -1.5), (80, -2.0), (400, -3.0)])
def test_repetition_counts_before_everything_else(words, penalty):
    text = f"<think>{'no ' * words}</think><answer>L</answer>"
    assert compute_repetition(text) == penalty
    result = score(text, answer="L")
    assert result.reward == (penalty or 2.0)
    if penalty:
        assert result.breakdown == {"repetition": penalty, "format": 0.0, "correct": 0.0}


def test_the_same_call_again_and_again_is_a_loop_over_turns():
    call = CALL.format("here", 333)
    assert score(call, call, call, answer_text("L"), answer="L").reward == 2.0
    assert score(call, call, call, call, answer_text("L"), answer="L").reward == -2.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        " " * 5000,
        "<think>The ring is in the upper left region, so I look there.</think><answer>L</answer>",
        '{"name":"zoom","arguments":{"bbox":[0,0,0,0]}}',
        "12.3 12.3 12.3",
        "\n".join(f"{index}: 0 0 0 {index * 7919}" for index in range(60)),
    ],
)
def test_ordinary_text_has_no_loop(text):
    assert compute_repetition(text) == 0.0


def test_excess_is_what_could_be_left_out():
    assert compute_loop_excess("abc " * 25) == 4 * 24 - 1  # the last blank is no text
    assert compute_loop_excess("x" * 100) == 99
    assert compute_loop_excess("abcabcabc") == 0
    block = "".join(chr(0x4E00 + index) for index in range(256))
    assert compute_loop_excess(block * 4) == 256 * 3
    assert compute_loop_excess("😀\ud800" * 40) == 78


def test_a_very_long_text_is_read_in_time():
    text = "".join(map(str, range(400_000)))
    started = time.process_time()
    compute_loop_excess(text)
    assert time.process_time() - started < 2.0


@given(
    st.lists(st.text(max_size=80), min_size=1, max_size=6),
    st.sampled_from([None, "L", "T", "", "L T"]),
    st.sets(st.integers(0, 5)),
)
def test_only_the_levels_of_the_rubric_are_reached(actions, answer, malformed):
    result = score(*actions, answer=answer, malformed=malformed)
    assert result.reward in LEVELS
    assert sum(result.breakdown.values()) == result.reward
    assert set(result.breakdown) == {"repetition", "format", "correct"}
    if answer is None:
        assert result.reward <= -1.0
    assert result == score(*actions, answer=answer, malformed=malformed)


def test_every_level_can_be_reached():
    loops = [score("no " * count).reward for count in (20, 80, 400)]
    reached = {
        *loops,
        score("x", malformed={0}).reward,
        *(score(answer_text(letter), answer=letter).reward for letter in "LT"),
    }
    assert reached == LEVELS
    assert len(list(itertools.chain(reached))) == 6
