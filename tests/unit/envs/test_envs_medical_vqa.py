import json
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from envs_small_source import SmallSource
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

import medvista_ray.envs  # noqa: F401  -- registers the env
from medvista_ray.config.schema import EnvConfig
from medvista_ray.data.scene import VIEW_PX
from medvista_ray.envs.checker import check_episodes
from medvista_ray.envs.medical_vqa import MedicalVQAEnv
from medvista_ray.envs.spaces import ImageTuple, UnicodeText
from medvista_ray.errors import BlobMissingError
from medvista_ray.images.store import MemoryBlobCache
from medvista_ray.tools.base import Tool, ToolOutput
from medvista_ray.tools.renderer import ViewRenderer
from medvista_ray.tools.runner import make_tool_runner
from medvista_ray.types.tool_calls import ToolCall, ToolFailure

ZOOM = '<think>x</think><tool_call>{"name":"zoom","arguments":{"bbox":[333,0,667,333]}}</tool_call>'


class Hangs(Tool):
    name = "hangs"
    description = "Sleeps."
    parameters = {"type": "object"}  # noqa: RUF012
    deadline_s = 0.3

    def run(self, arguments, context):
        import time

        time.sleep(600)
        return ToolOutput()


def answer(letter):
    return f"<think>it is {letter}</think><answer>{letter}</answer>"


def call(name, **arguments):
    return f"<think>x</think><tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def make_env(*, tasks=None, **changes):
    settings = {"tool_prompt": "names", "view_size_px": 30, "list_choices": False, **changes}
    parts = {key: settings.pop(key) for key in ("tools_runner", "clock", "rubric", "renderer") if key in settings}
    if "tools_runner" in parts:
        parts["tools"] = parts.pop("tools_runner")
    return MedicalVQAEnv(tasks=tasks or SmallSource(), config=EnvConfig(**settings), **parts)


def test_passes_the_checker_of_gymnasium():
    env = gymnasium.make("medvista/MedicalVQA-v0")
    check_env(env.unwrapped, skip_render_check=True)
    check_env(make_env(), skip_render_check=True)
    env.close()
    env.close()


def test_the_registered_env_shows_no_answer_at_first():
    """The pocket set is shown at the size for which the views of all answers are the same."""
    env = gymnasium.make("medvista/MedicalVQA-v0")
    for seed in range(6):
        observation, _ = env.reset(seed=seed)
        assert {max(image.shape) for image in observation["images"]} == {VIEW_PX}
    env.close()


def test_a_stock_model_is_told_the_protocol_without_tools_too():
    env = make_env(offer_tools=False, tool_prompt="schemas")
    env.reset(seed=0)
    system, question = env.observe()
    assert (system.role, question.role) == ("system", "user")
    assert "<answer>" in system.text
    assert "tool" not in system.text
    env = make_env(offer_tools=False)
    env.reset(seed=0)
    assert [message.role for message in env.observe()] == ["user"]


def test_passes_our_checker():
    assert check_episodes(make_env) == []
    assert check_episodes(lambda: make_env(offer_tools=False, tool_prompt="schemas", list_choices=True)) == []


class BrokenEnv(MedicalVQAEnv):
    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward + 0.1, terminated, truncated, {**info, "noise": id(observation)}


def test_our_checker_finds_what_is_wrong():
    problems = check_episodes(lambda: BrokenEnv(tasks=SmallSource(), config=EnvConfig(view_size_px=30)))
    text = "\n".join(problems)
    assert "a reward before the end" in text
    assert "does not sum to the reward" in text
    assert "two different episodes" in text


def test_importing_the_envs_is_cheap():
    code = (
        "import sys, medvista_ray.envs\n"
        "print([m for m in ('torch', 'ray', 'transformers', 'vllm', 'pydicom', 'jsonschema') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_the_first_observation():
    env = make_env()
    observation, info = env.reset(options={"task_index": 2})
    assert info == {"task_id": "small-2", "family": "zoom"}
    rows = json.loads(observation["messages"])
    assert [row["role"] for row in rows] == ["system", "user"]
    assert rows[0]["parts"] == [{"type": "text", "text": "Tools: zoom, window_level, measure, flip_rotate."}]
    kinds = [part["type"] for part in rows[1]["parts"]]
    assert kinds == ["image", "image", "text"]
    assert [part["index"] for part in rows[1]["parts"][:2]] == [0, 1]
    assert rows[1]["parts"][2]["text"] == "Which letter?"
    assert [image.shape for image in observation["images"]] == [(22, 30, 3), (21, 30, 3)]
    system, user = env.unwrapped.observe()
    assert (system.role, user.role, user.text) == ("system", "user", "Which letter?")


def test_prompts():
    env = make_env(offer_tools=False)
    env.reset(seed=0)
    assert [message.role for message in env.observe()] == ["user"]
    env = make_env(tools=())
    env.reset(seed=0)
    assert [message.role for message in env.observe()] == ["user"]
    env = make_env(tool_prompt="schemas", list_choices=True)
    env.reset(seed=0)
    system, user = env.observe()
    inside = system.text.split("<tools>\n")[1].split("\n</tools>")[0]
    functions = [json.loads(line)["function"] for line in inside.splitlines()]
    assert [function["name"] for function in functions] == ["zoom", "window_level", "measure", "flip_rotate"]
    assert '{"name": <function-name>, "arguments": <args-json-object>}' in system.text
    assert user.text == "Which letter?\nChoices:\nL\nT\nX\nJ"


def test_a_whole_episode():
    env = make_env()
    env.reset(options={"task_index": 1})
    observation, reward, terminated, truncated, info = env.step(ZOOM)
    assert (reward, terminated, truncated) == (0.0, False, False)
    (row,) = json.loads(observation["messages"])
    assert row["role"] == "tool"
    assert [part["type"] for part in row["parts"]] == ["image"]
    assert row["parts"][0]["index"] == 2
    assert info["tool_call"] == ToolCall(name="zoom", arguments={"bbox": [333, 0, 667, 333]})
    assert info["stop_reason"] is None
    observation, *_ = env.step(call("flip_rotate", operation="flip_vertical", image=2))
    flipped = observation["images"][0]
    observation, *_ = env.step(call("flip_rotate", operation="flip_vertical", image=3))
    assert np.array_equal(observation["images"][0], flipped[::-1])
    observation, *_, info = env.step(call("measure", points=[[0, 0], [1000, 0]], image=1))
    assert json.loads(observation["messages"]) == [{"role": "tool", "parts": [{"type": "text", "text": "21.0 mm"}]}]
    observation, reward, terminated, truncated, info = env.step(answer("T"))
    assert (reward, terminated, truncated) == (2.0, True, False)
    assert json.loads(observation["messages"]) == []
    assert info["stop_reason"] == "answered"
    assert info["reward_breakdown"] == {"repetition": 0.0, "format": 1.0, "correct": 1.0}
    assert info["is_valid_answer"]
    for action in (answer("T"), ZOOM):
        with pytest.raises(ResetNeeded):
            env.step(action)


def test_a_malformed_action_ends_the_episode_and_a_bad_call_does_not():
    env = make_env()
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step("L")
    assert (reward, terminated, info["stop_reason"]) == (-1.0, True, "malformed")
    env.reset(options={"task_index": 0})
    for action in (
        "<think></think><tool_call>{</tool_call>",
        call("nothing"),
        call("zoom"),
        call("zoom", bbox=[9] * 4),
    ):
        observation, _, terminated, truncated, info = env.step(action)
        assert (terminated, truncated) == (False, False)
        assert observation["images"] == ()
        text = json.loads(observation["messages"])[0]["parts"][0]["text"]
        assert text.startswith(f"{info['tool_failure'].value}: ")
    assert env.step(answer("L"))[1] == 2.0


def test_an_answer_that_is_no_choice_is_not_valid():
    env = make_env()
    env.reset(options={"task_index": 0})
    *_, info = env.step(answer("Q"))
    assert not info["is_valid_answer"]
    assert info["reward_breakdown"]["format"] == 1.0


def test_calling_tools_for_ever_pays_nothing():
    for limit in (1, 2, 6, 9):
        env = make_env(max_turns=limit)
        env.reset(seed=0)
        rewards = []
        for turn in range(limit):
            observation, reward, terminated, truncated, info = env.step(
                call("zoom", bbox=[turn, 0, 500 + turn * 37, 500 + turn])
            )
            rewards.append(reward)
        assert (terminated, truncated, info["stop_reason"]) == (False, True, "turn_limit")
        assert rewards == [0.0] * (limit - 1) + [-1.0]
        assert json.loads(observation["messages"]) == []
        assert info["reward_breakdown"]["format"] == -1.0


def test_the_last_call_is_checked_and_not_run():
    env = make_env(max_turns=1)
    env.reset(seed=0)
    assert env.step(call("zoom", bbox=[0]))[4]["tool_failure"] is ToolFailure.BAD_SCHEMA
    env.reset(seed=0)
    assert env.step(ZOOM)[4]["tool_failure"] is None


def test_an_answer_in_the_last_turn_counts():
    env = make_env(max_turns=2)
    env.reset(options={"task_index": 3})
    env.step(ZOOM)
    assert env.step(answer("J"))[1:4] == (2.0, True, False)


def test_the_time_of_an_episode_is_limited():
    now = [0.0]
    env = make_env(clock=lambda: now[0], episode_timeout_s=5.0)
    env.reset(seed=0)
    assert not env.step(ZOOM)[3]
    now[0] = 6.0
    _, _, terminated, truncated, info = env.step(ZOOM)
    assert (terminated, truncated, info["stop_reason"]) == (False, True, "deadline")


def test_limits_from_outside_are_scored_like_our_own():
    env = make_env()
    env.reset(seed=0)
    env.step(ZOOM)
    assert env.stop(cut_action="<think>and then").breakdown == {"repetition": 0.0, "format": -1.0, "correct": 0.0}
    with pytest.raises(ResetNeeded):
        env.observe()
    env.reset(seed=0)
    assert env.stop(cut_action="la " * 300).reward == -3.0
    env.reset(seed=0)
    assert env.stop().reward == -1.0


def test_no_tools_offered_means_that_none_runs():
    shared = make_tool_runner(["zoom"], timeout_s=5)
    env = make_env(offer_tools=False, tools_runner=shared)
    env.reset(seed=0)
    observation, *_, info = env.step(ZOOM)
    assert info["tool_failure"] is ToolFailure.BAD_SCHEMA
    assert observation["images"] == ()


def test_same_seed_same_episode_and_seeds_differ():
    env, twin = make_env(), make_env()
    ids = []
    for seed in range(12):
        first, second = env.reset(seed=seed), twin.reset(seed=seed)
        assert first[0]["messages"] == second[0]["messages"]
        ids.append(first[1]["task_id"])
    assert len(set(ids)) == 4


def test_options_are_checked_and_a_task_can_be_brought():
    env = make_env()
    for options, message in (({"task": 1, "tusk": 2}, "'tusk'"), ({"task_index": 4}, "from 0 to 3")):
        with pytest.raises(ValueError, match=message):
            env.reset(options=options)
    record = SmallSource()[3]
    with pytest.raises(BlobMissingError):
        env.reset(options={"task": record.task, "reference": record.reference})
    for data in record.blobs.values():
        env.blobs.put(data)
    env.reset(options={"task": record.task, "reference": record.reference, "trajectory_id": "0/3/0#1", "attempt": 1})
    assert env.step(answer("J"))[1] == 2.0


def test_members_of_a_group_share_the_bytes_of_a_view():
    blobs = MemoryBlobCache()
    renderer = ViewRenderer(blobs, view_size_px=30)
    shared = make_tool_runner(["zoom"], timeout_s=5)
    sizes = []
    for _ in range(4):
        env = make_env(renderer=renderer, tools_runner=shared)
        env.reset(options={"task_index": 0})
        env.step(ZOOM)
        sizes.append(blobs.size_bytes)
        env.close()
    assert len(set(sizes)) == 1
    assert make_env(renderer=renderer).blobs is blobs
    with pytest.raises(ValueError, match="another blob cache"):
        MedicalVQAEnv(tasks=SmallSource(), renderer=renderer, blobs=MemoryBlobCache())


def test_an_episode_outlives_the_eviction_of_its_images():
    env = MedicalVQAEnv(
        tasks=SmallSource(), config=EnvConfig(view_size_px=30), blobs=MemoryBlobCache(44_000),
        renderer=None,
    )  # fmt: skip
    env.reset(seed=0)
    for turn in range(4):
        observation, *_, info = env.step(call("zoom", bbox=[0, 0, 300 + turn, 300], image=turn))
        assert info["tool_failure"] is None
        assert len(observation["images"]) == 1


def test_a_hanging_tool_is_an_observation_and_the_episode_goes_on():
    env = make_env(tools=("zoom", f"{__name__}:Hangs"))
    try:
        env.reset(options={"task_index": 0})
        observation, _, terminated, truncated, info = env.step(call("hangs"))
        assert info["tool_failure"] is ToolFailure.TIMED_OUT
        assert (terminated, truncated) == (False, False)
        assert "timed_out" in observation["messages"]
        assert env.step(ZOOM)[4]["tool_failure"] is None
        assert env.step(answer("L"))[1] == 2.0
    finally:
        env.close()
        env.close()


async def test_the_async_step_gives_the_same_episode():
    env, twin = make_env(), make_env()
    env.reset(seed=3)
    twin.reset(seed=3)
    for action in (ZOOM, call("measure", points=[[0, 0], [9, 9]], image=1), answer("L")):
        first, second = env.step(action), await twin.step_async(action)
        assert first[0]["messages"] == second[0]["messages"]
        assert first[1:] == second[1:]


def test_observations_are_the_callers_to_change():
    env = make_env()
    observation, _ = env.reset(seed=0)
    before = [image.copy() for image in observation["images"]]
    for image in observation["images"]:
        image[:] = 0
    again, _ = env.reset(seed=0)
    assert all(np.array_equal(image, old) for image, old in zip(again["images"], before, strict=True))


def test_spaces():
    text, images = UnicodeText(seed=0), ImageTuple(seed=0)
    samples = [text.sample() for _ in range(200)]
    assert all(text.contains(sample) for sample in samples)
    assert any(not sample.isascii() for sample in samples)
    assert "".join(samples).encode()
    assert not text.contains(b"x")
    drawn = [images.sample() for _ in range(20)]
    assert all(images.contains(sample) for sample in drawn)
    read_back = images.from_jsonable(json.loads(json.dumps(images.to_jsonable(drawn))))
    assert all(
        np.array_equal(a, b) for old, new in zip(drawn, read_back, strict=True) for a, b in zip(old, new, strict=True)
    )
    grey = np.zeros((4, 4), np.uint8)
    for wrong in (
        [np.zeros((2, 2, 3), np.uint8)],
        (grey,),
        (np.zeros((4, 4, 3)),),
        (np.zeros((0, 4, 3), np.uint8),),
        None,
    ):
        assert not images.contains(wrong)
    assert (UnicodeText(), ImageTuple()) == (text, images)
    with pytest.raises(ValueError, match="mask"):
        text.sample(mask=1)
