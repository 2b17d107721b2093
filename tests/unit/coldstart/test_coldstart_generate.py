"""Plans through the real env: a cold-start trajectory is a rollout, and only well-formed ones are kept."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from medvista_ray.coldstart.generate import (
    generate_cold_start,
    is_well_formed,
    join_cold_start,
    keep_well_formed,
    make_answer_planner,
    make_expert_planner,
)
from medvista_ray.config.schema import EnvConfig
from medvista_ray.data.sources import make_task_source
from medvista_ray.errors import DataError
from medvista_ray.images.codec import digest_of
from medvista_ray.rendering.renderer import load_renderer
from medvista_ray.rendering.spans import check_stream
from medvista_ray.rollout.env_factory import make_env_factory
from medvista_ray.rollout.episode import EpisodeSettings
from medvista_ray.testing.renderer_folder import write_renderer_folder
from medvista_ray.types.tool_calls import ToolFailure
from medvista_ray.types.trajectories import StopReason
from medvista_ray.types.wire import encode_trajectory

CONFIG = EnvConfig(view_size_px=84, max_turns=3, tool_prompt="names", list_choices=False)
FAMILIES = ("zoom", "window", "structure", "measure")

EXPERT = make_expert_planner(right_share=0.35, second_look_share=0.1)


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    return load_renderer(write_renderer_folder(tmp_path_factory.mktemp("policy")))


def make_tasks(families=FAMILIES):
    return make_task_source(
        "pocket", "train", families=families, weights=(1.0,) * len(families), num_tasks=12, seed=0
    )  # fmt: skip


async def generate(renderer, planner, *, tasks=None, indices=range(24), config=CONFIG, seed=0):
    factory = make_env_factory(config, cache_bytes=2**24)
    settings = EpisodeSettings(max_action_tokens=150, max_context_tokens=3000, timeout_s=60.0)
    try:
        return await generate_cold_start(
            tasks or make_tasks(),
            planner=planner,
            factory=factory,
            renderer=renderer,
            settings=settings,
            indices=indices,
            seed=seed,
        )
    finally:
        factory.close()


async def test_expert_trajectories_are_valid_rollouts(renderer):
    data = await generate(renderer, EXPERT)
    assert (len(data.trajectories), data.num_dropped) == (24, 0)
    shown = set()
    for trajectory in data.trajectories:
        assert trajectory.stop_reason is StopReason.ANSWERED
        assert all(turn.tool_failure is None for turn in trajectory.turns)
        assert trajectory.reward_breakdown["format"] == 1.0
        check_stream(trajectory.token_ids, trajectory.image_spans, image_token_id=renderer.image_token_id)
        for turn in trajectory.turns:
            ids = trajectory.token_ids[turn.action_start : turn.action_end]
            assert ids.tolist() == renderer.encode_action(turn.action).tolist()
            assert trajectory.loss_mask[turn.action_start : turn.action_end].all()
        shown |= {span.digest for span in trajectory.image_spans}
    assert set(data.images) == shown
    assert all(digest_of(image) == digest for digest, image in data.images.items())
    assert len({trajectory.group_id for trajectory in data.trajectories}) == 24


async def test_the_same_seed_plays_the_same_bytes(renderer):
    runs = [await generate(renderer, EXPERT, indices=range(12), seed=seed) for seed in (0, 0, 1)]
    encoded = [[encode_trajectory(trajectory) for trajectory in run.trajectories] for run in runs]
    assert encoded[0] == encoded[1]
    assert encoded[0] != encoded[2]


async def test_answers_without_tools(renderer):
    config = dataclasses.replace(CONFIG, offer_tools=False)
    data = await generate(renderer, make_answer_planner(), config=config, indices=range(12))
    assert len(data.trajectories) == 12
    assert all(len(trajectory.turns) == 1 for trajectory in data.trajectories)
    assert all(trajectory.reward == 2.0 for trajectory in data.trajectories)


def cycle_planner(*plans):
    """Plan one after the other, by the order of episodes."""
    played = iter(range(10**6))
    return lambda record, rng: tuple(plans[next(played) % len(plans)])


GOOD = ("<think>x</think><answer>L</answer>",)
MALFORMED = {
    "no tags": ("L",),
    "a call of no tool": ('<think>x</think><tool_call>{"name":"?","arguments":{}}</tool_call>', *GOOD),
    "arguments beyond the schema": (
        '<think>x</think><tool_call>{"name":"zoom","arguments":{"bbox":[1]}}</tool_call>',
        *GOOD,
    ),
    "an empty box": (
        '<think>x</think><tool_call>{"name":"zoom","arguments":{"bbox":[9,9,9,9]}}</tool_call>',
        *GOOD,
    ),
    "a plan that is too short": ('<think>x</think><tool_call>{"name":"flip_rotate","arguments":{}}</tool_call>',),
    "no plan": (),
    "an action without end": ("<think>" + "x" * 900,),
    "calls for ever": ('<think>x</think><tool_call>{"name":"zoom","arguments":{"bbox":[0,0,500,500]}}</tool_call>',)
    * 3,
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_what_is_not_well_formed_is_dropped(renderer, name):
    data = await generate(renderer, cycle_planner(GOOD, MALFORMED[name]), tasks=make_tasks(("zoom",)), indices=range(4))
    assert (len(data.trajectories), data.num_dropped) == (2, 2)
    assert [trajectory.group_id for trajectory in data.trajectories] == ["0/0/0", "0/2/0"]
    assert set(data.images) == {span.digest for trajectory in data.trajectories for span in trajectory.image_spans}


async def test_parts_joined_are_the_whole(renderer):
    """Worker processes play ranges of the same episodes."""
    whole = await generate(renderer, EXPERT, indices=range(10))
    joined = join_cold_start([await generate(renderer, EXPERT, indices=part) for part in (range(4), range(4, 10))])
    assert [encode_trajectory(each) for each in joined.trajectories] == [
        encode_trajectory(each) for each in whole.trajectories
    ]
    assert joined.images == whole.images


async def test_nothing_well_formed_is_one_line(renderer):
    data = await generate(renderer, cycle_planner(("L",)), indices=range(2))
    assert (data.trajectories, data.images, data.num_dropped) == ([], {}, 2)
    with pytest.raises(DataError, match="no trajectory is well-formed"):
        join_cold_start([data, data])


async def test_an_action_that_the_policy_could_not_say_is_dropped(renderer):
    long = (f"<think>{'abc ' * 60}</think><answer>L</answer>",)
    data = await generate(renderer, cycle_planner(GOOD, long), tasks=make_tasks(("zoom",)), indices=range(2))
    assert data.num_dropped == 1


async def test_the_filter_of_recordings(renderer):
    data = await generate(renderer, make_answer_planner(), indices=range(4), tasks=make_tasks(("structure",)))
    good, wrong, failed, broken = data.trajectories
    wrong = dataclasses.replace(wrong, reward_breakdown={"format": 1.0, "correct": 0.0})
    failed = dataclasses.replace(
        failed, turns=(dataclasses.replace(failed.turns[0], tool_failure=ToolFailure.TIMED_OUT),)
    )
    broken = dataclasses.replace(broken, stop_reason=StopReason.BROKEN)
    assert [is_well_formed(each) for each in (good, wrong, failed, broken)] == [True, True, False, False]
    assert list(keep_well_formed([good, wrong, failed, broken])) == [good]
    unscored = dataclasses.replace(good, reward_breakdown={"format": 1.0})
    assert list(keep_well_formed([unscored])) == [unscored]
    assert np.shares_memory(good.token_ids, unscored.token_ids)
