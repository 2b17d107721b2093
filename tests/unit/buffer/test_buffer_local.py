"""The async face: the same answers, with the clock that it is handed."""

from __future__ import annotations

import inspect

import pytest

from medvista_ray.buffer.local import LocalReplayBuffer
from medvista_ray.errors import LeaseExpiredError
from medvista_ray.types import protocols
from medvista_ray.types.delivery import CommitResult, ConsumerSettings, Wait, WaitReason


def test_it_has_every_method_of_the_protocol_with_the_same_parameters():
    methods = dict(inspect.getmembers(protocols.ReplayBuffer, inspect.isfunction))
    for name, method in methods.items():
        if not name.startswith("_"):
            own = inspect.signature(getattr(LocalReplayBuffer, name))
            assert own.parameters.keys() == inspect.signature(method).parameters.keys(), name


async def test_a_batch_from_admission_to_publish_and_a_lease_that_goes_back(make_buffer, make_group):
    now_s = [100.0]
    buffer = LocalReplayBuffer(make_buffer(attach=False, groups_per_step=1, ack_wait_s=10.0), lambda: now_s[0])
    fence = (await buffer.attach(ConsumerSettings(groups_per_step=1, max_staleness=2), incarnation=0)).fence
    for task in (0, 1):
        await buffer.admit(f"0/{task}/0", incarnation=0)
        assert await buffer.commit(make_group(f"0/{task}/0")) is CommitResult.ACCEPTED
    lease = await buffer.fetch(fence=fence, train_from_version=0)
    assert lease.deadline_s == 110.0
    await buffer.shard(lease.lease_id, rank=0)
    await buffer.ack(lease.lease_id, fence=fence)
    await buffer.publish(1, batch_id=lease.lease_id, fence=fence)
    late = await buffer.fetch(fence=fence, train_from_version=1)
    now_s[0] = 105.0
    assert await buffer.extend(late.lease_id, fence=fence) == 115.0
    now_s[0] = 115.0
    assert await buffer.expire() == ["0/1/0"]
    with pytest.raises(LeaseExpiredError):
        await buffer.ack(late.lease_id, fence=fence)
    await buffer.end_tasks(incarnation=0)
    snapshot = await buffer.snapshot()
    assert await buffer.cut(snapshot, contained_batch_ids=[lease.lease_id], policy_version=1) == 1
    page = await buffer.read(after=(0, 0), limit=10)
    assert [number for number, _ in page.entries] == [2, 4, 8]


async def test_waits_cancels_and_attempts_pass_through(make_buffer):
    buffer = LocalReplayBuffer(make_buffer(groups_per_step=1, max_staleness=0), lambda: 0.0)
    await buffer.admit("0/0/0", incarnation=0)
    assert await buffer.admit("0/1/0", incarnation=0) == Wait(reason=WaitReason.NO_CAPACITY)
    assert (await buffer.attempt("0/0/0", replaces=0, incarnation=0)).attempt == 1
    assert [each.attempt for each in await buffer.running()] == [1]
    await buffer.cancel("0/0/0", incarnation=0)
    assert await buffer.to_issue_again() == ["0/0/1"]
    await buffer.admit("0/0/1", incarnation=0)
    await buffer.fail("0/0/1", reason="no_data", incarnation=0)
    await buffer.set_cursor("viewer", (0, 1))
    assert await buffer.cursor("viewer") == (0, 1)
    assert (await buffer.status()).failed_reasons == {"no_data": 1}
