"""One episode in the real env: its stream, its limits, and what breaks a member."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from rollout_parts import (
    BAD_CALL,
    BONE,
    CONFIG,
    ZOOM,
    answer,
    make_factory,
    make_tasks,
    mask_of_turns,
    play,
    run_one,
    sampled_ids,
)

from medvista_ray.envs.medical_vqa import MedicalVQAEnv
from medvista_ray.errors import EngineDiedError
from medvista_ray.images.store import MemoryBlobCache
from medvista_ray.rendering.spans import check_stream
from medvista_ray.testing.blobs import MemoryBlobStore
from medvista_ray.testing.clock import ManualClock
from medvista_ray.testing.inference import ScriptedPolicyClient
from medvista_ray.types.messages import Message, TextPart
from medvista_ray.types.sampling import GenerateResult
from medvista_ray.types.tool_calls import ToolFailure
from medvista_ray.types.trajectories import StopReason, VersionSpan

TASKS = make_tasks("zoom")


async def test_a_whole_episode(renderer):
    record, blobs = TASKS[0], MemoryBlobStore()
    actions = (ZOOM, answer(record.reference.answer))
    client = play(renderer, *actions)
    client.policy_version = 7
    trajectory = await run_one(renderer, record, client, blobs=blobs)
    assert trajectory.error is None
    assert (trajectory.stop_reason, trajectory.reward) == (StopReason.ANSWERED, 2.0)
    assert trajectory.reward_breakdown == {"repetition": 0.0, "format": 1.0, "correct": 1.0}
    # what was sampled is what stands in the stream, and nothing else is masked
    assert sampled_ids(trajectory) == [renderer.encode_action(action).tolist() for action in actions]
    assert np.array_equal(trajectory.loss_mask, mask_of_turns(trajectory))
    assert np.array_equal(trajectory.logprobs, np.where(trajectory.loss_mask, np.float32(-0.5), np.float32(0.0)))
    assert [turn.action for turn in trajectory.turns] == list(actions)
    assert [(span.policy_version, span.start, span.end) for span in trajectory.version_spans] == [
        (7, turn.action_start, turn.action_end) for turn in trajectory.turns
    ]
    # every image has its features
    shown = [image for turn in trajectory.turns for message in turn.messages for image in message.images]
    assert [(span.digest, span.length) for span in trajectory.image_spans] == [
        (image.digest, renderer.image_length(image.width, image.height)) for image in shown
    ]
    assert len(shown) == 2
    check_stream(trajectory.token_ids, trajectory.image_spans, image_token_id=renderer.image_token_id)
    assert set(blobs.data) == {image.digest for image in shown}
    # the prompt of a turn is the stream before it
    for request, turn in zip(client.requests, trajectory.turns, strict=True):
        assert np.array_equal(request.token_ids, trajectory.token_ids[: turn.action_start])
        assert request.image_spans == trajectory.image_spans[: turn.turn_index + 1]
        assert (request.group_id, request.member, request.turn_index, request.seed) == ("0/0/0", 1, turn.turn_index, 3)
        assert request.sampling.banned_token_ids == renderer.banned_token_ids
        assert request.sampling.stop_token_ids == renderer.stop_token_ids
    assert trajectory.turns[0].tool_call.name == "zoom"
    text = renderer.decode_stream(trajectory.token_ids)
    assert text.count("<|im_start|>assistant\n") == 2
    assert record.task.question in text
    assert f"{ZOOM}<|im_end|>\n<|im_start|>user\n<tool_response>" in text


async def test_a_failed_call_is_an_observation(renderer):
    trajectory = await run_one(renderer, TASKS[0], play(renderer, BAD_CALL, answer("?")))
    assert [turn.tool_failure for turn in trajectory.turns] == [ToolFailure.BAD_SCHEMA, None]
    assert trajectory.stop_reason is StopReason.ANSWERED
    assert trajectory.reward == 1.0


@pytest.mark.parametrize(
    ("actions", "stop", "num_turns"),
    [
        ((BONE, BONE, BONE), StopReason.TURN_LIMIT, 3),
        (("no tags",), StopReason.MALFORMED, 1),
        ((ZOOM, "<answer>"), StopReason.MALFORMED, 2),
    ],
)
async def test_ends_without_an_answer(renderer, actions, stop, num_turns):
    trajectory = await run_one(renderer, TASKS[0], play(renderer, *actions))
    assert (trajectory.stop_reason, trajectory.reward, len(trajectory.turns)) == (stop, -1.0, num_turns)
    assert trajectory.is_live
    assert np.array_equal(trajectory.loss_mask, mask_of_turns(trajectory))


async def test_an_action_cut_off_by_its_limit(renderer):
    trajectory = await run_one(renderer, TASKS[0], play(renderer, answer("L")), max_action_tokens=5)
    assert trajectory.stop_reason is StopReason.ACTION_LENGTH
    assert trajectory.stop_reason.is_truncated
    assert (trajectory.num_action_tokens, trajectory.reward) == (5, -1.0)
    assert sampled_ids(trajectory) == [renderer.encode_action(answer("L"))[:5].tolist()]


async def test_a_cut_off_action_gets_its_end_of_turn_off_the_mask(renderer):
    """An action that is whole but for the end of turn goes on; the end is written, not trained."""
    length = len(renderer.encode_action(ZOOM)) - 1
    trajectory = await run_one(renderer, TASKS[0], play(renderer, ZOOM, answer("L")), max_action_tokens=length)
    assert trajectory.stop_reason is StopReason.ANSWERED
    end = trajectory.turns[0].action_end
    assert trajectory.token_ids[end] == renderer.end_token_id
    assert not trajectory.loss_mask[end]


async def test_an_observation_that_does_not_fit_ends_the_episode_and_its_images_go_with_it(renderer):
    record = TASKS[0]
    whole = await run_one(renderer, record, play(renderer, ZOOM, answer("L")))
    second = whole.turns[1].action_start
    for room, fits in ((second + 120, True), (second + 119, False)):
        blobs = MemoryBlobStore()
        trajectory = await run_one(
            renderer, record, play(renderer, ZOOM, answer("L")), blobs=blobs, max_context_tokens=room
        )
        assert trajectory.is_live
        assert trajectory.stop_reason is (StopReason.ANSWERED if fits else StopReason.CONTEXT_LENGTH)
        assert len(trajectory.image_spans) == len(blobs.data) == (2 if fits else 1)
        assert len(trajectory.turns) == (2 if fits else 1)
        if not fits:
            assert len(trajectory.token_ids) == trajectory.turns[0].action_end
            assert (trajectory.reward, trajectory.reward_breakdown["format"]) == (-1.0, -1.0)


async def test_a_first_prompt_without_room_breaks_the_member(renderer):
    client = play(renderer, answer("L"))
    trajectory = await run_one(renderer, TASKS[0], client, max_context_tokens=60)
    assert trajectory.error.startswith("RenderError: the first prompt of")
    assert not client.requests


async def test_a_deadline_ends_the_episode_after_its_turn(renderer):
    clock = ManualClock()

    def act(request):
        clock.advance(6.0)
        return renderer.encode_action(ZOOM).tolist()

    trajectory = await run_one(renderer, TASKS[0], ScriptedPolicyClient(act), clock=clock, timeout_s=10.0)
    assert (trajectory.stop_reason, len(trajectory.turns)) == (StopReason.DEADLINE, 2)
    assert trajectory.stop_reason.is_truncated
    assert trajectory.reward == -1.0


class Bent:
    """A client whose honest answers are bent by a function."""

    def __init__(self, client, bend):
        self._client = client
        self._bend = bend

    async def generate(self, request) -> GenerateResult:
        return self._bend(await self._client.generate(request))


def change(**fields):
    return lambda result: dataclasses.replace(
        result, **{name: make(result) if callable(make) else make for name, make in fields.items()}
    )


def with_nan(result):
    logprobs = result.logprobs.copy()
    logprobs[-1] = np.nan
    return dataclasses.replace(result, logprobs=logprobs)


BENDS = {
    "another prompt": (change(prompt_length=lambda r: r.prompt_length + 8), "the engine saw a prompt of"),
    "no tokens": (change(token_ids=np.zeros(0, np.int32), logprobs=np.zeros(0, np.float32)), "0 action tokens"),
    "too few logprobs": (change(logprobs=lambda r: r.logprobs[:-1]), "action tokens with"),
    "not a number": (with_nan, "a logprob is not finite"),
    "no versions": (change(version_spans=()), "version spans cover 0 of"),
    "versions twice": (
        change(version_spans=lambda r: (VersionSpan(policy_version=0, start=0, end=len(r.token_ids) - 1),) * 2),
        "version spans cover",
    ),
}


@pytest.mark.parametrize("name", BENDS)
async def test_what_an_engine_may_not_answer(renderer, name):
    bend, text = BENDS[name]
    trajectory = await run_one(renderer, TASKS[0], Bent(play(renderer, answer("L")), bend))
    assert not trajectory.is_live
    assert trajectory.error.startswith("RenderError: ")
    assert text in trajectory.error
    assert (trajectory.reward, trajectory.reward_breakdown) == (0.0, {})


async def test_a_banned_token_breaks_the_member(renderer):
    for banned in renderer.banned_token_ids:
        ids = [banned, *renderer.encode_action(answer("L")).tolist()]
        trajectory = await run_one(renderer, TASKS[0], ScriptedPolicyClient([ids]))
        assert not trajectory.is_live


async def test_a_dead_engine_is_not_the_members_fault(renderer):
    client = play(renderer, answer("L"))
    client.is_dead = True
    with pytest.raises(EngineDiedError):
        await run_one(renderer, TASKS[0], client)


class PlainEnv:
    """Somebody's env: the Gymnasium surface, observe() and blobs; pays on the way."""

    def __init__(self, *, num_turns=2, reward=0.25, info=None, fails_in=None):
        self.blobs = MemoryBlobCache()
        self.actions = []
        self._num_turns = num_turns
        self._reward = reward
        self._info = {} if info is None else info
        self._fails_in = fails_in

    @property
    def unwrapped(self):
        return self

    def _maybe_fail(self, where):
        if self._fails_in == where:
            raise KeyError(f"bug in {where}")

    def reset(self, *, seed=None, options=None):
        self._maybe_fail("reset")
        self.task = options["task"]
        return {}, {}

    def step(self, action):
        self._maybe_fail("step")
        self.actions.append(action)
        return {}, self._reward, len(self.actions) == self._num_turns, False, self._info

    def observe(self):
        self._maybe_fail("observe")
        return (Message(role="user", parts=(TextPart(text=f"turn {len(self.actions)}"),)),)

    def close(self):
        self._maybe_fail("close")


async def test_an_env_with_only_the_gymnasium_surface(renderer):
    env = PlainEnv()
    trajectory = await run_one(renderer, TASKS[0], play(renderer, "one", "two"), env=env)
    assert trajectory.error is None
    assert env.actions == ["one", "two"]
    assert (trajectory.stop_reason, trajectory.reward, trajectory.reward_breakdown) == (StopReason.ANSWERED, 0.5, {})
    assert [turn.tool_call for turn in trajectory.turns] == [None, None]
    named = PlainEnv(info={"stop_reason": "malformed", "reward_breakdown": {"speed": 0.5}})
    trajectory = await run_one(renderer, TASKS[0], play(renderer, "one", "two"), env=named)
    assert (trajectory.stop_reason, trajectory.reward_breakdown) == (StopReason.MALFORMED, {"speed": 0.5})


async def test_a_limit_ends_an_env_without_stop(renderer):
    env = PlainEnv(num_turns=9, reward=0.0)
    trajectory = await run_one(
        renderer, TASKS[0], play(renderer, *["x" * 60] * 9), env=env, max_context_tokens=250, max_action_tokens=70
    )
    assert trajectory.stop_reason is StopReason.CONTEXT_LENGTH
    assert (trajectory.reward, trajectory.reward_breakdown) == (0.0, {})
    assert 1 <= len(env.actions) < 9


async def test_gymnasium_wrappers_see_the_steps(renderer):
    import gymnasium

    class Env(PlainEnv, gymnasium.Env):
        pass

    class Double(gymnasium.Wrapper):
        def step(self, action):
            observation, reward, *rest = self.env.step(action)
            return (observation, 2 * reward, *rest)

    trajectory = await run_one(renderer, TASKS[0], play(renderer, "one", "two"), env=Double(Env()))
    assert trajectory.reward == 1.0


@pytest.mark.parametrize("where", ["reset", "step", "observe"])
async def test_an_env_that_raises_breaks_its_member(renderer, where):
    trajectory = await run_one(renderer, TASKS[0], play(renderer, "one", "two"), env=PlainEnv(fails_in=where))
    assert not trajectory.is_live
    assert re.fullmatch(r"KeyError at test_rollout_episode\.py:\d+ in _maybe_fail", trajectory.error)


async def test_the_text_of_a_foreign_error_is_not_recorded(renderer):
    """A rubric's own message may quote the reference."""

    class Quoting(PlainEnv):
        def step(self, action):
            raise ValueError(f"{action!r} is not {TASKS[0].reference.answer!r}")

    trajectory = await run_one(renderer, TASKS[0], play(renderer, "one"), env=Quoting())
    assert trajectory.error.startswith("ValueError at test_rollout_episode.py:")


async def test_a_step_of_ones_own_is_not_passed_by(renderer):
    """Overriding `step` alone, by a subclass or a wrapper, is enough; the inherited `step_async` must not win."""
    import gymnasium

    class Doubled(MedicalVQAEnv):
        def step(self, action):
            observation, reward, *rest = super().step(action)
            return (observation, 2 * reward, *rest)

    class Halved(gymnasium.Wrapper):
        def step(self, action):
            observation, reward, *rest = self.env.step(action)
            return (observation, reward / 2, *rest)

    rewards = []
    for env in (MedicalVQAEnv(config=CONFIG), Doubled(config=CONFIG), Halved(MedicalVQAEnv(config=CONFIG))):
        for data in TASKS[0].blobs.values():
            env.unwrapped.blobs.put(data)
        trajectory = await run_one(renderer, TASKS[0], play(renderer, answer(TASKS[0].reference.answer)), env=env)
        env.close()
        assert trajectory.error is None
        rewards.append(trajectory.reward)
    assert rewards[0] > 0
    assert rewards[1:] == [2 * rewards[0], rewards[0] / 2]


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), "much"])
async def test_a_reward_that_is_no_number_breaks_its_member(renderer, reward):
    trajectory = await run_one(renderer, TASKS[0], play(renderer, "one", "two"), env=PlainEnv(reward=reward))
    assert not trajectory.is_live


async def test_the_real_env_says_no_tools_when_none_are_offered(renderer):
    config = dataclasses.replace(CONFIG, offer_tools=False)
    trajectory = await run_one(renderer, TASKS[0], play(renderer, ZOOM, answer("L")), config=config)
    assert trajectory.turns[0].tool_failure is ToolFailure.BAD_SCHEMA
    assert "Tools:" not in renderer.decode_stream(trajectory.token_ids)


def test_the_parts_play_in_a_real_env():
    factory = make_factory()
    assert type(factory.make()).__name__ == "MedicalVQAEnv"
    factory.close()
