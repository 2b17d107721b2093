"""Chinese text there and back: task, observation, tokens, action, tool arguments, grader, record."""

import dataclasses
import json

import pytest
from rollout_parts import CONFIG, answer, make_factory, make_tasks, play, run_one

from medvista_ray.envs.spaces import UnicodeText
from medvista_ray.types.messages import Reference
from medvista_ray.types.trajectories import StopReason, TrajectoryGroup
from medvista_ray.types.wire import decode_group, encode_group

QUESTION = "图中显示的是哪个器官？（单选）"
CALL = '<think>看不清楚，放大。</think><tool_call>{"name":"zoom","arguments":{"bbox":[0,0,333,333]}}</tool_call>'


def make_record(expected, **changes):
    record = make_tasks("zoom")[0]
    task = dataclasses.replace(record.task, question=QUESTION, choices=(), **changes)
    return dataclasses.replace(record, task=task, reference=Reference(task_id=task.task_id, answer=expected))


@pytest.mark.parametrize(
    ("said", "expected", "is_right"),
    [("肝脏", "肝脏", True), ("肝脏。", "肝脏", True), ("右肝脏", "肝脏", False), ("脾脏", "肝脏", False)],
)
async def test_an_answer_is_graded(renderer, said, expected, is_right):
    trajectory = await run_one(renderer, make_record(expected), play(renderer, CALL, answer(said)))
    assert trajectory.stop_reason is StopReason.ANSWERED
    assert (trajectory.reward_breakdown["correct"] > 0) == is_right
    assert trajectory.turns[0].action == CALL
    assert trajectory.turns[1].action == answer(said)
    assert QUESTION in trajectory.turns[0].messages[-1].text


async def test_it_survives_the_wire(renderer):
    record = make_record("肝脏")
    trajectory = await run_one(renderer, record, play(renderer, answer("肝脏")))
    group = TrajectoryGroup(group_id="0/0/0", task=record.task, trajectories=(trajectory,), attempt=0, incarnation=0)
    back = decode_group(encode_group(group))
    assert back.task.question == QUESTION
    assert back.trajectories[0].turns[0].action == answer("肝脏")


def test_observation_and_spaces_hold_it():
    record = make_record("肝脏")
    factory = make_factory(CONFIG)
    for data in record.blobs.values():
        factory.cache.put(data)
    env = factory.make()
    observation, _ = env.reset(options={"task": record.task, "reference": record.reference})
    assert QUESTION in observation["messages"]
    assert json.loads(observation["messages"])[-1]["parts"][-1]["text"] == QUESTION
    assert env.observation_space.contains(observation)
    assert UnicodeText().contains(CALL)
    factory.close()


def test_tokens_give_it_back(renderer):
    for text in (QUESTION, CALL, answer("肝脏")):
        assert renderer.decode_action(renderer.encode_action(text)) == text
