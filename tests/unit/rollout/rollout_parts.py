"""What rollout tests are made of: the real env over pocket tasks, a scripted policy, a store that notes the order."""

from __future__ import annotations

import numpy as np

from medvista_ray.config.schema import EnvConfig
from medvista_ray.data.sources import make_task_source
from medvista_ray.rollout.env_factory import make_env_factory
from medvista_ray.rollout.episode import EpisodeKey, EpisodeRunner, EpisodeSettings
from medvista_ray.testing.blobs import MemoryBlobStore
from medvista_ray.testing.inference import ScriptedPolicyClient
from medvista_ray.types.delivery import GroupWork

CONFIG = EnvConfig(view_size_px=84, max_turns=3, tool_prompt="names", list_choices=False)
ZOOM = '<think>Too small.</think><tool_call>{"name":"zoom","arguments":{"bbox":[0,0,333,333]}}</tool_call>'
BONE = '<think>Not visible.</think><tool_call>{"name":"window_level","arguments":{"preset":"bone"}}</tool_call>'
BAD_CALL = '<think>?</think><tool_call>{"name":"zoom","arguments":{"bbox":"?"}}</tool_call>'


def answer(text):
    return f"<think>I see it.</think><answer>{text}</answer>"


def make_tasks(*families, split="train", num_tasks=8, seed=0):
    families = families or ("zoom", "window")
    return make_task_source(
        "pocket", split, families=families, weights=(1.0,) * len(families), num_tasks=num_tasks, seed=seed
    )


def play(renderer, *actions):
    """A policy that says these texts, turn by turn."""
    return ScriptedPolicyClient(lambda request: renderer.encode_action(actions[request.turn_index]).tolist())


def make_runner(renderer, client, blobs=None, *, clock=None, **limits):
    defaults = {"max_action_tokens": 120, "max_context_tokens": 2000, "timeout_s": 60.0, "seed": 3}
    return EpisodeRunner(
        renderer=renderer,
        client=client,
        blobs=MemoryBlobStore() if blobs is None else blobs,
        settings=EpisodeSettings(**(defaults | limits)),
        **({} if clock is None else {"clock": clock}),
    )


def make_factory(config=CONFIG, **changes):
    return make_env_factory(config, cache_bytes=2**24, **changes)


async def run_one(renderer, record, client, *, env=None, blobs=None, clock=None, config=CONFIG, **limits):
    """Run one episode of a task in the real env; return its trajectory."""
    runner = make_runner(renderer, client, blobs, clock=clock, **limits)
    factory = make_factory(config)
    for data in record.blobs.values():
        factory.cache.put(data)
    try:
        env = factory.make() if env is None else env
        return await runner.run(env, record.task, record.reference, EpisodeKey(group_id="0/0/0", member=1))
    finally:
        factory.close()


def make_work(record, *, group_size=2, group_id="0/0/0", attempt=0):
    return GroupWork(
        task=record.task,
        reference=record.reference,
        group_id=group_id,
        attempt=attempt,
        incarnation=0,
        group_size=group_size,
    )


async def store_sources(blobs, record):
    for digest, data in record.blobs.items():
        await blobs.put_if_absent(digest, data)


def sampled_ids(trajectory):
    return [trajectory.token_ids[turn.action_start : turn.action_end].tolist() for turn in trajectory.turns]


def mask_of_turns(trajectory):
    mask = np.zeros(len(trajectory.token_ids), bool)
    for turn in trajectory.turns:
        mask[turn.action_start : turn.action_end] = True
    return mask
