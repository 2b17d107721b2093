"""The canary walk behind the env: nothing of a reference is in a prompt, a record, the journal, a blob or a log."""

from __future__ import annotations

import dataclasses
import logging

from rollout_parts import BAD_CALL, BONE, CONFIG, ZOOM, answer, make_factory, make_runner, make_tasks, make_work

from medvista_ray.buffer.replay_buffer import ReplayBuffer
from medvista_ray.config.schema import BufferConfig
from medvista_ray.envs.canary import make_canary_reference, needles_of
from medvista_ray.rollout.batching import make_batch_cutter
from medvista_ray.rollout.group import EpisodeCount, make_receipt, run_group
from medvista_ray.testing.blobs import MemoryBlobStore
from medvista_ray.testing.inference import ScriptedPolicyClient
from medvista_ray.tools.base import Tool, ToolOutput
from medvista_ray.types.delivery import Admitted, ConsumerSettings, Lease
from medvista_ray.types.wire import encode_group, encode_shard

REFERENCE = make_canary_reference()
SPY = '<think>x</think><tool_call>{"name":"spy","arguments":{}}</tool_call>'
EPISODES = (
    (ZOOM, BONE, answer("wrong")),
    (SPY, BAD_CALL, answer("12 mm")),
    ("no tags at all",),
    (ZOOM, ZOOM, ZOOM),
    (answer("x"),),
)


class Spy(Tool):
    """Tells all that it can see."""

    name = "spy"
    description = "Looks at everything."
    parameters = {"type": "object"}  # noqa: RUF012

    def run(self, arguments, context):
        return ToolOutput(text="\n".join([repr(vars(context)), repr(context.records), repr(context.key)])[:3900])


async def collect(renderer, caplog, *, leak=None):
    """Run one group to its lease and return every byte that left on the way, by where."""
    caplog.set_level(logging.DEBUG)
    record = make_tasks("window")[0]
    task = dataclasses.replace(record.task, choices=(), question=record.task.question + (leak or ""))
    record = dataclasses.replace(record, task=task, reference=REFERENCE)
    blobs = MemoryBlobStore()
    for digest, data in record.blobs.items():
        await blobs.put_if_absent(digest, data)
    client = ScriptedPolicyClient(
        lambda request: renderer.encode_action(EPISODES[request.member][request.turn_index]).tolist()
    )
    config = dataclasses.replace(CONFIG, tools=("zoom", "window_level", f"{__name__}:Spy"), max_turns=3)
    factory = make_factory(config)
    buffer = ReplayBuffer(
        BufferConfig(groups_per_step=1, max_staleness=2), cut_batch=make_batch_cutter(normalize_std=True)
    )
    assert isinstance(buffer.admit("0/0/0", incarnation=0), Admitted)
    fence = buffer.attach(ConsumerSettings(groups_per_step=1, max_staleness=2)).fence
    try:
        group = await run_group(
            make_work(record, group_size=len(EPISODES)),
            runner=make_runner(renderer, client, blobs, max_context_tokens=20_000, max_action_tokens=200),
            make_env=factory.make,
            blobs=blobs,
            cache=factory.cache,
            live=EpisodeCount(),
        )
    finally:
        factory.close()
    assert [member.error for member in group.trajectories] == [None] * len(EPISODES)
    receipt = make_receipt(group, buffer.commit(group))
    snapshots = [buffer.snapshot()]
    lease = buffer.fetch(fence=fence, train_from_version=0, now_s=0.0)
    assert isinstance(lease, Lease)
    shard = buffer.shard(lease.lease_id, rank=0)
    snapshots.append(buffer.snapshot())
    page = buffer.read(after=(0, 0), limit=99)
    kept = [data for digest, data in factory.cache._blobs.items()]
    return {
        "prompts": [
            piece
            for request in client.requests
            for piece in (request.token_ids.tobytes(), renderer.decode_stream(request.token_ids).encode())
        ],
        "requests": [repr(request).encode() for request in client.requests],
        "trajectories": [encode_group(group), repr(group).encode()],
        "journal": snapshots,
        "stream": [encode_group(entry) for _, entry in page.entries if not isinstance(entry, tuple)],
        "batch": [encode_shard(shard)],
        "receipt": [repr(receipt).encode()],
        "blobs": [*blobs.data.values(), *kept],
        "decoded blobs": [renderer.decode_stream(member.token_ids).encode() for member in group.trajectories],
        "logs": [caplog.text.encode()],
    }


async def test_the_canary_walk(renderer, caplog):
    left = await collect(renderer, caplog)
    for where in ("prompts", "trajectories", "journal", "stream", "batch", "blobs"):
        assert sum(map(len, left[where])) > 500, where
    assert any(b"canary" not in piece and b"spy" in piece for piece in left["prompts"])
    for where, pieces in left.items():
        for needle in needles_of(REFERENCE):
            assert not any(needle in piece for piece in pieces), (where, needle)


async def test_the_walk_would_find_a_leak(renderer, caplog):
    canaries = (REFERENCE.answer, REFERENCE.task_id, repr(REFERENCE.tolerance))
    left = await collect(renderer, caplog, leak=" ".join(canaries))
    for needle in canaries:
        found = {where for where, pieces in left.items() if any(needle.encode() in piece for piece in pieces)}
        assert {"prompts", "trajectories", "journal", "stream"} <= found
