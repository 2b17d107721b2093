"""The numbers of the table, on cases small enough to compute by hand, and the properties of the bootstrap."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvista_ray.evaluation.failures import FailureClass, classify_failure, count_failures
from medvista_ray.evaluation.outcomes import EpisodeOutcome
from medvista_ray.evaluation.statistics import RowResult, compute_row
from medvista_ray.types.tool_calls import ToolFailure
from medvista_ray.types.trajectories import StopReason


def outcome(
    item: str, *, correct: bool, family: str = "zoom", greedy: bool = False, **fields: object
) -> EpisodeOutcome:
    base = EpisodeOutcome(
        item_id=item,
        family=family,
        source=item.partition("#")[0],
        greedy=greedy,
        correct=correct,
        is_valid_answer=True,
        num_calls_opened=1,
        num_calls_valid=1,
        num_turns=2,
        num_action_tokens=20,
        stop_reason=StopReason.ANSWERED,
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def row(outcomes: list[EpisodeOutcome], *, draws: int = 500, seed: int = 0) -> RowResult:
    return compute_row(outcomes, draws=draws, seed=seed)


def test_sampled_is_the_mean_over_items_of_the_mean_over_samples() -> None:
    episodes = [
        outcome("ct#1", correct=True),
        outcome("ct#1", correct=True),
        outcome("ct#1", correct=False),  # item 1: 2/3 of three samples
        outcome("mr#2", correct=False),  # item 2: 0 of one
        outcome("ct#1", correct=True, greedy=True),
        outcome("mr#2", correct=False, greedy=True),
    ]
    accuracy = row(episodes).accuracy["zoom"]
    assert accuracy.sampled == pytest.approx(1 / 3)
    assert accuracy.greedy == 0.5
    assert (accuracy.n, accuracy.num_sources) == (2, 2)
    assert 0.0 <= accuracy.low <= accuracy.sampled <= accuracy.high <= 2 / 3 + 1e-9


def test_overall_is_the_unweighted_mean_of_zoom_window_structure() -> None:
    episodes = [outcome(f"a#{i}", correct=True, family="zoom") for i in range(10)]
    episodes += [outcome("a#w", correct=False, family="window")]
    episodes += [outcome("b#s", correct=True, family="structure")]
    episodes += [outcome("c#m", correct=False, family="measure")]
    result = row(episodes)
    overall = result.accuracy["overall"]
    assert overall.sampled == pytest.approx(2 / 3)
    assert overall.greedy is None
    assert (overall.n, overall.num_sources) == (12, 2)  # the source of `measure` has no part in it
    assert list(result.accuracy) == ["overall", "measure", "structure", "window", "zoom"]


def test_overall_of_one_family_is_that_family() -> None:
    result = row([outcome("a#1", correct=True), outcome("a#2", correct=False)])
    assert result.accuracy["overall"] == result.accuracy["zoom"]


def test_families_of_a_user_count_when_none_of_ours_is_there() -> None:
    result = row([outcome("a#1", correct=True, family="fracture"), outcome("a#2", correct=False, family="plane")])
    assert result.accuracy["overall"].sampled == 0.5


def test_the_interval_has_the_width_of_a_binomial() -> None:
    episodes = [outcome(f"s#{i:03}", correct=i < 120) for i in range(240)]
    accuracy = row(episodes, draws=2000).accuracy["zoom"]
    half = 1.96 * (0.25 / 240) ** 0.5  # 0.063
    assert accuracy.low == pytest.approx(0.5 - half, abs=0.012)
    assert accuracy.high == pytest.approx(0.5 + half, abs=0.012)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=40), st.randoms())
def test_the_order_of_episodes_changes_nothing(cases: list[tuple[int, bool]], random: object) -> None:
    episodes = [outcome(f"s#{item}", correct=correct) for item, correct in cases]
    shuffled = list(episodes)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    result = row(episodes, draws=50)
    assert row(shuffled, draws=50) == result
    accuracy = result.accuracy["zoom"]
    assert 0.0 <= accuracy.low <= accuracy.high <= 1.0
    assert row(episodes, draws=50, seed=0) == result


def test_another_seed_gives_another_interval_and_the_same_mean() -> None:
    episodes = [outcome(f"s#{i}", correct=i % 3 == 0) for i in range(37)]
    one, two = row(episodes, draws=99, seed=1).accuracy["zoom"], row(episodes, draws=99, seed=2).accuracy["zoom"]
    assert one.sampled == two.sampled
    assert (one.low, one.high) != (two.low, two.high)


def test_the_interval_of_a_family_does_not_depend_on_the_others() -> None:
    zoom = [outcome(f"s#{i}", correct=i % 3 == 0) for i in range(37)]
    both = [*zoom, *(outcome(f"s#{i}", correct=True, family="window") for i in range(5))]
    assert row(zoom).accuracy["zoom"] == row(both).accuracy["zoom"]


def test_calls_and_answers_are_counted_on_sampled_episodes() -> None:
    episodes = [
        outcome("a#1", correct=True, num_calls_opened=3, num_calls_valid=2),
        outcome("a#2", correct=True, num_calls_opened=0, num_calls_valid=0, is_valid_answer=False),
        outcome("a#3", correct=True, family="structure", num_calls_opened=1, num_calls_valid=1),
        outcome("a#1", correct=True, greedy=True, num_calls_opened=9, num_calls_valid=0, is_valid_answer=False),
    ]
    result = row(episodes)
    assert result.valid_tool_calls == 0.75
    assert result.calls_per_episode == {"zoom": 1.5, "structure": 1.0}
    assert result.valid_answers == pytest.approx(2 / 3)


def test_a_row_without_calls_has_no_share_of_valid_ones() -> None:
    assert row([outcome("a#1", correct=True, num_calls_opened=0, num_calls_valid=0)]).valid_tool_calls is None


def test_nothing_evaluated_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing was evaluated"):
        row([])
    with pytest.raises(ValueError, match="'zoom' has no sampled episode"):
        row([outcome("a#1", correct=True, greedy=True)])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"correct": True, "tool_failures": (ToolFailure.BAD_SCHEMA,)}, None),
        ({"stop_reason": StopReason.BROKEN, "is_valid_answer": False}, FailureClass.BROKEN),
        ({"tool_failures": (ToolFailure.BAD_ARGUMENT, ToolFailure.BAD_SCHEMA)}, FailureClass.CALL_SCHEMA),
        ({"num_calls_opened": 2}, FailureClass.CALL_SCHEMA),
        ({"tool_failures": (ToolFailure.BAD_ARGUMENT,)}, FailureClass.ARGUMENTS),
        ({"tool_failures": (ToolFailure.TIMED_OUT,)}, FailureClass.TOOL_OUTPUT),
        ({"is_valid_answer": False, "stop_reason": StopReason.TURN_LIMIT}, FailureClass.TOOL_OUTPUT),
        ({}, FailureClass.REASONING),
        ({"num_calls_opened": 0, "num_calls_valid": 0}, FailureClass.NO_CALL),
        (
            {"num_calls_opened": 0, "num_calls_valid": 0, "is_valid_answer": False},
            FailureClass.NO_ANSWER,
        ),
    ],
)
def test_every_wrong_episode_has_one_class(fields: dict[str, object], expected: FailureClass | None) -> None:
    assert classify_failure(outcome("a#1", **{"correct": False, **fields})) is expected  # type: ignore[arg-type]


def test_classes_sum_to_the_wrong_episodes() -> None:
    episodes = [
        outcome("a#1", correct=True),
        outcome("a#2", correct=False),
        outcome("a#3", correct=False),
        outcome("a#4", correct=False, num_calls_opened=0, num_calls_valid=0),
    ]
    assert count_failures(episodes) == {"E6_reasoning": 2, "no_call": 1}
