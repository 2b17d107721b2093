import json

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import medvista_ray.envs  # noqa: F401  -- registers the env
from medvista_ray.config.schema import EnvConfig
from medvista_ray.data.sources import make_task_source
from medvista_ray.envs.grounding import GroundingEnv, read_citations
from medvista_ray.types.messages import ImageRef, Task

TASKS = make_task_source("pocket", "train", families=("insert_box",), weights=(), num_tasks=8, seed=0)
TASK = Task(
    task_id="t", family="f", question="?", images=(ImageRef(digest="0" * 64, width=200, height=100),),
    answer_kind="boxes",
)  # fmt: skip


@pytest.fixture
def env():
    return GroundingEnv(tasks=TASKS, config=EnvConfig(tools=("zoom",)))


def answer(boxes, thought="x"):
    return f"<think>{thought}</think><answer>{json.dumps(boxes)}</answer>"


def right_boxes(index):
    record = TASKS[index]
    image = record.task.images[0]
    scale = 1000 / np.array([image.width, image.height] * 2)
    return [[round(float(value)) for value in box * scale] for box in record.reference.boxes]


def test_the_registered_env_is_checked_by_gymnasium():
    env = gymnasium.make("medvista/Grounding-v0")
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


def test_the_policy_is_told_the_form_of_boxes_and_of_citations(env):
    observation, _ = env.reset(seed=0)
    assert "JSON list of boxes" in observation["messages"]
    assert "<box>" in observation["messages"]


def test_right_boxes_are_right_and_a_citation_of_them_pays(env):
    for index in range(4):
        boxes = right_boxes(index)
        cited = "".join(f"<box>{box}</box>" for box in boxes)
        rewards = {}
        for name, action in (
            ("plain", answer(boxes)),
            ("cited", answer(boxes, cited)),
            ("whole", answer(boxes, "<box>[0, 0, 1000, 1000]</box>")),
            ("wrong", answer([[0, 0, 5, 5]])),
        ):
            env.reset(options={"task_index": index})
            _, rewards[name], terminated, _, info = env.step(action)
            assert terminated
            assert (info["reward_breakdown"]["correct"] > 0) == (name != "wrong")
            assert info["is_valid_answer"]
        assert rewards["cited"] > rewards["plain"] >= rewards["whole"]
        assert rewards["plain"] > rewards["wrong"]


def test_citations_of_every_turn_are_read_in_pixels_and_nonsense_cites_nothing():
    text = "<box>[0, 0, 500, 500]</box> <box>nonsense</box> <box>[[100, 100, 200, 200]]</box> <box>[1]</box>"
    assert read_citations(text, TASK).tolist() == [[0, 0, 100, 50], [20, 10, 40, 20]]
    assert read_citations("", TASK).shape == (0, 4)
    assert len(read_citations("<box>[0, 0, 9, 9]</box>" * 1000, TASK)) == 64


def test_an_unreadable_answer_is_wrong_and_not_valid(env):
    env.reset(seed=0)
    *_, info = env.step("<think>x</think><answer>top left</answer>")
    assert info["reward_breakdown"]["correct"] == 0.0
    assert not info["is_valid_answer"]
