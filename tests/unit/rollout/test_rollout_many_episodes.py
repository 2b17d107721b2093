"""Ten thousand episodes of a policy that writes anything, from admission to consumption; memory stays flat."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from rollout_parts import BAD_CALL, BONE, ZOOM, answer, make_factory, make_runner, make_tasks, make_work

from medvista_ray.buffer.replay_buffer import ReplayBuffer
from medvista_ray.config.schema import BufferConfig
from medvista_ray.rollout.batching import make_batch_cutter
from medvista_ray.rollout.group import EpisodeCount, run_group
from medvista_ray.testing.blobs import MemoryBlobStore
from medvista_ray.testing.inference import ScriptedPolicyClient
from medvista_ray.types.delivery import Admitted, ConsumerSettings, GroupState, Lease
from medvista_ray.types.trajectories import StopReason

GROUP_SIZE = 8
TURN_TEXTS = (
    ZOOM,
    BONE,
    BAD_CALL,
    *(answer(letter) for letter in "LTXJ"),
    answer("é <tool_call> 🫀 \x00"),
    "no tags",
    "",
    "<think>" + "word " * 60,
    '<think>x</think><tool_call>{"name":"zoom","arguments":{"bbox":[0,0,0,0]}}</tool_call>',
)


def read_rss_mib():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def write_anything(renderer):
    def script(request):
        key = f"{request.group_id} {request.member} {request.turn_index}"
        drawn = zlib.crc32(key.encode()) % len(TURN_TEXTS)
        return renderer.encode_action(TURN_TEXTS[drawn]).tolist()[: request.max_new_tokens]

    return script


def consume(buffer, fence, version):
    """Train on a batch if one is ready; return the version after it."""
    lease = buffer.fetch(fence=fence, train_from_version=version, now_s=0.0)
    if not isinstance(lease, Lease):
        return version
    buffer.shard(lease.lease_id, rank=0)
    buffer.ack(lease.lease_id, fence=fence)
    buffer.publish(version + 1, batch_id=lease.lease_id, fence=fence)
    return version + 1


@pytest.mark.long
async def test_ten_thousand_episodes(renderer):
    tasks, blobs, live = make_tasks(num_tasks=16), MemoryBlobStore(), EpisodeCount()
    buffer = ReplayBuffer(
        BufferConfig(groups_per_step=4, max_staleness=2), cut_batch=make_batch_cutter(normalize_std=True)
    )
    fence = buffer.attach(ConsumerSettings(groups_per_step=4, max_staleness=2)).fence
    client = ScriptedPolicyClient(write_anything(renderer))
    runner, factory = make_runner(renderer, client, blobs), make_factory()
    stops, sizes, version = set(), [], 0
    for number in range(10_000 // GROUP_SIZE):
        record, group_id = tasks[number % len(tasks)], f"0/{number}/0"
        for digest, data in record.blobs.items():
            await blobs.put_if_absent(digest, data)
        assert isinstance(buffer.admit(group_id, incarnation=0), Admitted)
        client.policy_version = version
        client.requests.clear()
        group = await run_group(
            make_work(record, group_size=GROUP_SIZE, group_id=group_id),
            runner=runner,
            make_env=factory.make,
            blobs=blobs,
            cache=factory.cache,
            live=live,
        )
        assert live() == 0
        assert [member.error for member in group.trajectories if not member.is_live] == []
        stops |= {member.stop_reason for member in group.trajectories}
        buffer.commit(group)
        version = consume(buffer, fence, version)
        if number % 250 == 249:
            sizes.append(read_rss_mib())
    factory.close()
    assert stops == {StopReason.ANSWERED, StopReason.MALFORMED, StopReason.TURN_LIMIT, StopReason.ACTION_LENGTH}
    counts = buffer.status().counts
    assert counts["submitted"] == sum(counts.values()) - counts["submitted"] == 10_000 // GROUP_SIZE
    assert counts[GroupState.CONSUMED.value] == 4 * version > 1000
    assert max(sizes[1:]) - sizes[0] < 100, f"MiB after every 2,000 episodes: {np.round(sizes)}"
