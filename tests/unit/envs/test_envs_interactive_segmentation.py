import json

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded

import medvista_ray.envs  # noqa: F401  -- registers the env
from medvista_ray.config.schema import EnvConfig
from medvista_ray.data.sources import make_task_source
from medvista_ray.envs.interactive_segmentation import InteractiveSegmentationEnv
from medvista_ray.errors import ConfigError
from medvista_ray.rewards.rubric import Score
from medvista_ray.tools.base import Picture, Tool, ToolOutput
from medvista_ray.tools.runner import make_tool_runner
from medvista_ray.types.tool_calls import ToolFailure

SPEC = f"{__name__}:BoxSegment"


class BoxSegment(Tool):
    """Marks the box; a negative point takes its quarter away. Fails without a box."""

    name = "segment"
    description = "Marks a box."
    parameters = {"type": "object"}  # noqa: RUF012

    def run(self, arguments, context):
        image = context.image(0)
        pixels = image.pixels()
        height, width = pixels.shape[:2]
        x0, y0, x1, y1 = arguments["bbox"]
        mask = np.zeros((height, width), bool)
        mask[y0 * height // 1000 : y1 * height // 1000, x0 * width // 1000 : x1 * width // 1000] = True
        for (x, y), label in zip(arguments.get("points", ()), arguments.get("labels", ()), strict=True):
            column, row = x * width // 1000, y * height // 1000
            mask[row - 20 : row + 20, column - 20 : column + 20] = bool(label)
        return ToolOutput(text="marked", images=(Picture(pixels=pixels, parent=0, mask=mask),))


class Seen:
    """A rubric that keeps what it was shown."""

    def score(self, episode, *, task, reference):
        self.episode = episode
        return Score(reward=1.0, breakdown={"correct": 1.0})


@pytest.fixture(scope="module")
def tools():
    runner = make_tool_runner([SPEC, "zoom"], timeout_s=20, num_workers=1)
    yield runner
    runner.close()


@pytest.fixture
def env(tools):
    tasks = make_task_source("pocket", "train", families=("insert_mask",), weights=(), num_tasks=8, seed=0)
    return InteractiveSegmentationEnv(
        tasks=tasks, tools=tools, rubric=Seen(), config=EnvConfig(tools=(SPEC, "zoom"), max_turns=9, view_size_px=84)
    )


def call(name, **arguments):
    return f"<think>x</think><tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


BOX = call("add_bbox", bbox=[250, 250, 750, 750])
STOP = call("stop_action")


def test_the_registered_env_is_checked_by_gymnasium():
    from gymnasium.utils.env_checker import check_env

    env = gymnasium.make("medvista/InteractiveSegmentation-v0")
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


def test_the_policy_is_told_the_actions_and_the_tools_that_look(env):
    observation, _ = env.reset(seed=0)
    system, question = json.loads(observation["messages"])
    text = system["parts"][0]["text"]
    assert all(f'"name": "{name}"' in text for name in ("add_bbox", "add_point", "stop_action", "zoom"))
    assert '"name": "segment"' not in text
    assert "Outline" in question["parts"][1]["text"]


def test_prompts_add_up_and_every_mask_is_kept_at_full_resolution(env):
    env.reset(seed=0)
    observation, _, _, _, info = env.step(BOX)
    assert info["tool_failure"] is None
    assert [image.shape for image in observation["images"]] == [(84, 84, 3)]
    env.step(call("add_point", point=[500, 500], label="negative"))
    _, reward, terminated, truncated, info = env.step(STOP)
    assert (reward, terminated, truncated, info["stop_reason"]) == (1.0, True, False, "answered")
    seen = env._rubric.episode
    first, second = seen.masks
    side = env._episode.task.images[0].width
    assert first.shape == second.shape == (side, side)
    assert first.sum() == (side // 2) ** 2
    assert first.sum() - second.sum() == 40 * 40
    assert [action.used_tool for action in seen.actions] == [True, True, False]
    assert seen.answer is not None
    with pytest.raises(ResetNeeded):
        env.step(STOP)


def test_a_new_box_replaces_the_old_one_and_a_failed_call_changes_nothing(env):
    env.reset(seed=0)
    *_, info = env.step(call("add_point", point=[500, 500], label="positive"))  # the tool fails without a box
    assert info["tool_failure"] is ToolFailure.FAILED
    env.step(BOX)
    env.step(call("add_bbox", bbox=[0, 0, 100, 100]))
    env.step(STOP)
    first, second = env._rubric.episode.masks
    assert not (first & second).any()


@pytest.mark.parametrize(
    ("action", "failure"),
    [
        (call("segment", bbox=[0, 0, 9, 9]), ToolFailure.BAD_SCHEMA),
        (call("add_bbox", bbox=[0, 0, 1001, 9]), ToolFailure.BAD_SCHEMA),
        (call("add_point", point=[1, 1], label="maybe"), ToolFailure.BAD_SCHEMA),
        (call("stop_action", now=True), ToolFailure.BAD_SCHEMA),
        (call("stop_action"), ToolFailure.BAD_ARGUMENT),
        (call("no_such_tool"), ToolFailure.BAD_SCHEMA),
        ("<think>x</think><tool_call>{</tool_call>", ToolFailure.BAD_SCHEMA),
    ],
)
def test_a_wrong_call_is_an_observation_and_the_episode_goes_on(env, action, failure):
    env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(action)
    assert (info["tool_failure"], reward, terminated, truncated) == (failure, 0.0, False, False)
    assert failure.value in observation["messages"]


def test_an_answer_is_not_well_formed_here(env):
    env.reset(seed=0)
    env.step(BOX)
    *_, terminated, _, info = env.step("<think>x</think><answer>done</answer>")
    assert terminated
    assert info["stop_reason"] == "malformed"
    assert [action.is_well_formed for action in env._rubric.episode.actions] == [True, False]


def test_five_turns_are_the_most_and_the_mask_of_the_last_one_counts(env):
    env.reset(seed=0)
    for _ in range(4):
        *_, truncated, _ = env.step(BOX)
        assert not truncated
    _, _, terminated, truncated, info = env.step(BOX)
    assert (terminated, truncated, info["stop_reason"]) == (False, True, "turn_limit")
    assert len(env._rubric.episode.masks) == 5


def test_tools_that_look_can_be_called_between(env):
    env.reset(seed=0)
    env.step(BOX)
    observation, *_, info = env.step(call("zoom", bbox=[0, 0, 500, 500]))
    assert info["tool_failure"] is None
    assert len(observation["images"]) == 1
    env.step(STOP)
    assert len(env._rubric.episode.masks) == 1


def test_it_needs_the_tool():
    with pytest.raises(ConfigError, match=r"env\.tools.*'segment'"):
        InteractiveSegmentationEnv(config=EnvConfig(tools=("zoom",)))


def test_every_action_fits_the_schema_of_the_real_tool():
    tasks = make_task_source("pocket", "train", families=("insert_mask",), weights=(), num_tasks=8, seed=0)
    config = EnvConfig(tools=("segment_classical",), view_size_px=84)
    env = InteractiveSegmentationEnv(tasks=tasks, config=config)
    try:
        env.reset(seed=0)
        for action in (
            BOX,
            call("add_point", point=[500, 500], label="positive"),
            call("add_point", point=[10, 10], label="negative"),
        ):
            *_, info = env.step(action)
            assert info["tool_failure"] is None, info
    finally:
        env.close()
