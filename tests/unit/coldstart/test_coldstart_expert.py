"""The scripted expert: right in the configured share of episodes, with a wrong habit in the others."""

from __future__ import annotations

import dataclasses
import json
import re
from functools import partial

import numpy as np
import pytest

from medvista_ray.coldstart.expert import (
    GRID_EDGES,
    MIDDLE,
    NOT_VISIBLE,
    THOUGHTS,
    VISIBLE,
    grid_box,
    plan_answer_only,
    plan_expert,
)
from medvista_ray.data.sources import make_task_source
from medvista_ray.envs.protocol_text import Answer, Call, parse_action
from medvista_ray.errors import DataError
from medvista_ray.images.windowing import DEFAULT_PRESET
from medvista_ray.rewards.grading import is_correct

NUM_EPISODES = 400
CENTRE = grid_box(4)
plan_once = partial(plan_expert, second_look_share=0.0)


def make_tasks(family, num_tasks=20):
    return make_task_source("pocket", "train", families=(family,), weights=(1.0,), num_tasks=num_tasks, seed=0)


def play(family, *, right_share, num_episodes=NUM_EPISODES):
    """Yield (record, call arguments or None, answer, thought of the answer) of many planned episodes."""
    records = [make_tasks(family)[index] for index in range(20)]
    for index in range(num_episodes):
        record = records[index % 20]
        rng = np.random.default_rng((1, index))
        plan = [
            parse_action(action)
            for action in plan_once(record.task, record.reference, right_share=right_share, rng=rng)
        ]
        assert isinstance(plan[-1], Answer)
        assert all(isinstance(action, Call) for action in plan[:-1])
        assert all(action.thought in THOUGHTS for action in plan)
        call = plan[0].call if len(plan) == 2 else None
        yield record, call, plan[-1].text, plan[-1].thought


def right_box(record):
    x0, y0, x1, y1 = record.reference.boxes[0]
    column, row = int((x0 + x1) / 2 // 84), int((y0 + y1) / 2 // 84)
    return [GRID_EDGES[column], GRID_EDGES[row], GRID_EDGES[column + 1], GRID_EDGES[row + 1]]


@pytest.mark.parametrize("share", [0.0, 0.35, 1.0])
def test_zoom_looks_at_the_right_ninth_in_its_share_else_at_the_centre(share):
    num_right = num_wrong = lucky = 0
    for record, call, text, thought in play("zoom", right_share=share):
        assert call.name == "zoom"
        box, right = call.arguments["bbox"], right_box(record)
        assert box in (right, CENTRE)
        assert thought == (VISIBLE if box == right else NOT_VISIBLE)
        if right == CENTRE:
            assert text == record.reference.answer
            continue
        if box == right:
            num_right += 1
            assert text == record.reference.answer
        else:
            num_wrong += 1
            lucky += text == record.reference.answer
    assert num_right / (num_right + num_wrong) == pytest.approx(share, abs=0.07 if 0 < share < 1 else 0)
    if num_wrong:
        assert lucky / num_wrong == pytest.approx(0.25, abs=0.08)  # a guess


@pytest.mark.parametrize("share", [0.0, 0.35, 1.0])
def test_window_takes_the_right_preset_in_its_share_else_the_default(share):
    num_right = lucky = 0
    for record, call, text, thought in play("window", right_share=share):
        assert call.name == "window_level"
        preset = call.arguments["preset"]
        kind = re.search(r"on the (\w+)-dense", record.task.question)[1]
        assert preset in (kind, DEFAULT_PRESET)
        assert thought == (VISIBLE if preset == kind else NOT_VISIBLE)
        num_right += preset == kind
        if preset == kind:
            assert text == record.reference.answer
        else:
            lucky += text == record.reference.answer
    assert num_right / NUM_EPISODES == pytest.approx(share, abs=0.07 if 0 < share < 1 else 0)
    if share < 1:
        assert lucky / (NUM_EPISODES - num_right) == pytest.approx(0.25, abs=0.08)


def test_structure_and_measure_are_done_right():
    for record, call, text, _ in play("structure", right_share=0.0, num_episodes=40):
        assert call is None
        assert text == record.reference.answer
    for record, call, text, _ in play("measure", right_share=0.0, num_episodes=40):
        points = [int(number) for number in re.findall(r"\d+", record.task.question)]
        assert call.name == "measure"
        assert [*call.arguments["points"][0], *call.arguments["points"][1]] == points
        assert text == record.reference.answer


@pytest.mark.parametrize("family", ["zoom", "window", "structure", "measure"])
def test_without_tools_there_is_the_bare_answer(family):
    record = make_tasks(family)[0]
    (action,) = plan_answer_only(record.task, record.reference)
    parsed = parse_action(action)
    assert isinstance(parsed, Answer)
    assert parsed.text == record.reference.answer


def test_calls_are_json_without_blanks():
    record = make_tasks("zoom")[0]
    action = plan_once(record.task, record.reference, right_share=1.0, rng=np.random.default_rng(0))[0]
    text = action.split("<tool_call>")[1].removesuffix("</tool_call>")
    assert text == json.dumps(json.loads(text), separators=(",", ":"))


def test_the_same_generator_plans_the_same():
    record = make_tasks("window")[0]
    plans = [plan_once(record.task, record.reference, right_share=0.5, rng=np.random.default_rng(7)) for _ in range(2)]
    assert plans[0] == plans[1]


def test_what_the_expert_does_not_know_is_one_line():
    for family, what in (("vqa", "knows no family 'vqa'"), ("window", "kind of insert"), ("measure", "points in")):
        record = make_tasks("window")[0]
        task = dataclasses.replace(record.task, family=family, question="What is this?")
        with pytest.raises(DataError, match=what):
            plan_once(task, record.reference, right_share=1.0, rng=np.random.default_rng(0))


@pytest.mark.parametrize("family", ["zoom", "window"])
def test_some_wrong_looks_are_followed_by_the_right_one(family):
    tasks = make_tasks(family)
    records = [tasks[index] for index in range(20)]
    num_wrong = num_again = 0
    for index in range(NUM_EPISODES):
        record = records[index % 20]
        plan = plan_expert(
            record.task, record.reference, right_share=0.3, second_look_share=0.25, rng=np.random.default_rng(index)
        )
        *calls, answer = [parse_action(action) for action in plan]
        if answer.thought == VISIBLE and len(calls) == 1:
            continue
        num_wrong += 1
        if len(calls) == 2:
            num_again += 1
            assert answer.text == record.reference.answer
            assert calls[0].call != calls[1].call
            assert calls[1].thought == answer.thought.replace(VISIBLE, NOT_VISIBLE)
        else:
            assert answer.thought == NOT_VISIBLE
    assert num_again / num_wrong == pytest.approx(0.25, abs=0.08)


@pytest.mark.parametrize("family", ["insert_box", "structure"])
def test_a_bare_answer_is_right_whatever_its_kind(family):
    record = make_tasks(family)[0]
    (action,) = plan_answer_only(record.task, record.reference)
    assert is_correct(parse_action(action).text, task=record.task, reference=record.reference)


def test_a_bare_list_is_right_and_a_mask_has_no_words():
    record = make_tasks("insert_mask")[0]
    with pytest.raises(DataError, match=r"env\.offer_tools"):
        plan_answer_only(record.task, record.reference)
    task = dataclasses.replace(record.task, answer_kind="list")
    reference = dataclasses.replace(record.reference, mask=None, items=("left lung", "heart"))
    (action,) = plan_answer_only(task, reference)
    assert is_correct(parse_action(action).text, task=task, reference=reference)


@pytest.mark.parametrize("family", ["insert_box", "insert_mask"])
def test_outlines_are_those_of_the_object_or_the_middle(family):
    record = make_tasks(family)[0]
    plans = [
        plan_once(record.task, record.reference, right_share=share, rng=np.random.default_rng(0))
        for share in (1.0, 0.0)
    ]
    assert str(list(MIDDLE)) not in plans[0][0].replace(", ", ",").replace(",", ", ")
    assert str(list(MIDDLE)) in plans[1][0].replace(", ", ",").replace(",", ", ")
    assert ("stop_action" in plans[0][-1]) == (family == "insert_mask")
