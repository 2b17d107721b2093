"""Batches, leases, staleness and publishing, each rule with its numbers."""

from __future__ import annotations

import pytest

from medvista_ray.errors import ConfigError, FenceError, LeaseExpiredError
from medvista_ray.types.delivery import ConsumerSettings, Lease, Wait, WaitReason


def fetch(buffer, version, *, fence=1, now_s=0.0):
    return buffer.fetch(fence=fence, train_from_version=version, now_s=now_s)


def test_a_batch_is_sealed_in_order_of_admission_among_ready_groups(make_buffer, make_group, fill):
    buffer = make_buffer(groups_per_step=2)
    for task in (0, 1, 2, 3):
        buffer.admit(f"0/{task}/0", incarnation=0)
    for task in (3, 2, 0):  # 1 still runs and is not waited for
        buffer.commit(make_group(f"0/{task}/0"))
    lease = fetch(buffer, 0, now_s=5.0)
    assert lease == Lease(
        lease_id="b0",
        train_from_version=0,
        group_ids=("0/0/0", "0/2/0"),
        staleness=(0, 0),
        deadline_s=15.0,
        delivery_count=1,
    )
    assert fetch(buffer, 0, now_s=7.0) == lease  # asking again
    assert fetch(buffer, 1) == Wait(reason=WaitReason.GROUP_INCOMPLETE)


def test_every_rank_gets_its_part_and_the_denominators_of_the_whole(make_buffer, fill):
    buffer = make_buffer(world_size=2)
    fill(buffer, 0, rewards=(0.0, 1.0, 2.0))
    fill(buffer, 1)
    shards = [buffer.shard(fetch(buffer, 0).lease_id, rank=rank) for rank in (0, 1)]
    assert [[(s.group_id, s.member) for s in shard.samples] for shard in shards] == [
        [("0/0/0", 0), ("0/0/0", 2), ("0/1/0", 1)],
        [("0/0/0", 1), ("0/1/0", 0)],
    ]
    assert [(s.totals.num_groups, s.totals.num_samples, s.totals.num_action_tokens) for s in shards] == [(2, 5, 10)] * 2
    with pytest.raises(ValueError, match=r"rank must be in \[0, 2\), got 2"):
        buffer.shard("b0", rank=2)


def test_an_ack_before_every_rank_has_its_shard_is_refused(make_buffer, fill, make_journal):
    journal = make_journal()
    buffer = make_buffer(world_size=2, journal=journal)
    fill(buffer, 0, 1)
    fetch(buffer, 0)
    buffer.shard("b0", rank=0)
    with pytest.raises(FenceError, match=r"ranks \[1\] have not fetched"):
        buffer.ack("b0", fence=1)
    buffer.shard("b0", rank=1)
    buffer = make_buffer(journal=journal, attach=False)  # what was fetched survives a restart
    buffer.ack("b0", fence=1)
    buffer.ack("b0", fence=1)
    assert buffer.status().counts["acked"] == 2


@pytest.mark.parametrize("fence", [0, 1, 3])
def test_every_call_of_another_fence_is_refused(fence, make_buffer, fill):
    buffer = make_buffer()
    fill(buffer, 0, 1)
    buffer.attach(ConsumerSettings(groups_per_step=2, max_staleness=2))
    fetch(buffer, 0, fence=2)
    calls = [
        lambda: fetch(buffer, 0, fence=fence),
        lambda: buffer.ack("b0", fence=fence),
        lambda: buffer.nack("b0", fence=fence),
        lambda: buffer.extend("b0", fence=fence, now_s=0.0),
        lambda: buffer.publish(1, batch_id="b0", fence=fence),
    ]
    for call in calls:
        with pytest.raises(FenceError, match=f"fence {fence} does not hold the stream, 2 does"):
            call()


def test_nobody_holds_the_stream_before_a_consumer_attached(make_buffer):
    with pytest.raises(FenceError):
        fetch(make_buffer(attach=False), 0, fence=0)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (ConsumerSettings(groups_per_step=3, max_staleness=0), r"groups_per_step of a consumer must be in \[1, 2\]"),
        (ConsumerSettings(groups_per_step=0, max_staleness=0), r"groups_per_step of a consumer must be in \[1, 2\]"),
        (ConsumerSettings(groups_per_step=1, max_staleness=3), r"max_staleness of a consumer must be in \[0, 2\]"),
        (ConsumerSettings(groups_per_step=1, max_staleness=0, world_size=0), "world_size"),
    ],
)
def test_a_consumer_keeps_within_the_configured_limits(settings, text, make_buffer):
    buffer = make_buffer()
    with pytest.raises(ConfigError, match=text):
        buffer.attach(settings)
    assert buffer.status().fence == 1


def test_a_consumer_sets_the_pace(make_buffer):
    buffer = make_buffer(groups_per_step=2, max_staleness=2)
    attached = buffer.attach(ConsumerSettings(groups_per_step=1, max_staleness=1), incarnation=0)
    assert (attached.fence, attached.policy_version, buffer.status().capacity) == (2, 0, 2)
    with pytest.raises(FenceError):
        buffer.attach(ConsumerSettings(groups_per_step=1, max_staleness=1), incarnation=1)


def test_attaching_makes_open_batches_ready_and_leaves_running_groups_alone(make_buffer, fill, lease_and_ack):
    buffer = make_buffer()
    fill(buffer, 0, 1, 2, 3)
    acked, leased = lease_and_ack(buffer, 0), fetch(buffer, 1).lease_id
    buffer.admit("0/4/0", incarnation=0)
    buffer.attach(ConsumerSettings(groups_per_step=2, max_staleness=2))
    counts = buffer.status().counts
    assert (counts["ready"], counts["running"], counts["leased"], counts["acked"]) == (4, 1, 0, 0)
    for batch_id in (acked, leased):
        with pytest.raises(LeaseExpiredError):
            buffer.shard(batch_id, rank=0)
    assert fetch(buffer, 0, fence=2).group_ids == ("0/0/0", "0/1/0")
    assert fetch(buffer, 0, fence=2).delivery_count == 2


# --- train_from_version
def test_the_next_batch_starts_from_the_accepted_version_and_the_open_batches(make_buffer, fill, lease_and_ack):
    buffer = make_buffer(groups_per_step=1, max_staleness=3)
    fill(buffer, 0, 1, 2, 3)
    lease_and_ack(buffer, 0)
    assert fetch(buffer, 1).train_from_version == 1
    for version in (0, 3, 4, -1):  # acked, and ahead of what is open
        with pytest.raises(FenceError, match=f"starts from version 2, not {version}"):
            fetch(buffer, version)
    buffer.publish(1, batch_id="b0", fence=1)
    assert fetch(buffer, 1).lease_id == "b1"
    assert fetch(buffer, 2).lease_id == "b2"


def test_a_fetch_behind_a_lease_that_went_back_says_so(make_buffer, fill):
    buffer = make_buffer(groups_per_step=1, max_staleness=3)
    fill(buffer, 0, 1, 2)
    for version in (0, 1):
        fetch(buffer, version, now_s=version)
    buffer.expire(10.5)
    for version in (1, 2):
        with pytest.raises(LeaseExpiredError, match="version 0 has gone back"):
            fetch(buffer, version)
    with pytest.raises(FenceError):
        fetch(buffer, 3)  # nobody ever had a lease of version 2
    assert fetch(buffer, 0).group_ids == ("0/0/0",)


# --- staleness
def test_a_group_too_old_for_the_train_step_ends_stale_and_its_task_is_issued_again(make_buffer, fill, lease_and_ack):
    buffer = make_buffer(groups_per_step=1, max_staleness=1)
    for version in range(3):
        fill(buffer, version, version=version)
        buffer.publish(version + 1, batch_id=lease_and_ack(buffer, version), fence=1)
    fill(buffer, 10, version=1)  # 3 - 1 = 2 > 1
    fill(buffer, 11, version=2)  # 3 - 2 = 1
    lease = fetch(buffer, 3)
    assert (lease.group_ids, lease.staleness) == (("0/11/0",), (1,))
    assert (buffer.status().counts["stale"], buffer.to_issue_again()) == (1, ["0/10/1"])


def test_the_last_issue_of_a_task_fails_instead_of_going_stale(make_buffer, fill, lease_and_ack):
    buffer = make_buffer(groups_per_step=1, max_staleness=0, max_issues=1)
    fill(buffer, 0)
    buffer.publish(1, batch_id=lease_and_ack(buffer, 0), fence=1)
    fill(buffer, 1, version=0)
    assert fetch(buffer, 1) == Wait(reason=WaitReason.STALE_DROPPED)
    counts = buffer.status().counts
    assert (counts["stale"], counts["failed"], buffer.status().failed_reasons) == (0, 1, {"too_slow": 1})


def test_a_prefetch_beyond_the_staleness_waits_and_drops_nothing(make_buffer, fill, make_group):
    buffer = make_buffer(groups_per_step=1, max_staleness=0)
    fill(buffer, 0)
    fetch(buffer, 0)
    assert fetch(buffer, 1) == Wait(reason=WaitReason.PREFETCH_NEEDS_STALENESS)
    buffer = make_buffer(groups_per_step=1, max_staleness=1)
    fill(buffer, 0, 1)
    fetch(buffer, 0)
    fetch(buffer, 1)
    assert fetch(buffer, 2) == Wait(reason=WaitReason.PREFETCH_NEEDS_STALENESS)
    assert buffer.status().counts["stale"] == 0


def test_waits_for_groups_say_why(make_buffer, fill):
    buffer = make_buffer(groups_per_step=2)
    assert fetch(buffer, 0) == Wait(reason=WaitReason.GROUP_INCOMPLETE)
    fill(buffer, 0, 1, rewards=(1.0, 1.0))
    assert fetch(buffer, 0) == Wait(reason=WaitReason.ALL_FILTERED)
    fill(buffer, 2)
    assert fetch(buffer, 0) == Wait(reason=WaitReason.GROUP_INCOMPLETE)


# --- deadlines
def test_a_lease_that_goes_back_takes_the_later_ones_with_it(make_buffer, fill, lease_and_ack):
    buffer = make_buffer(groups_per_step=1, max_staleness=4)
    fill(buffer, 0, 1, 2, 3)
    lease_and_ack(buffer, 0)
    for version, now_s in ((1, 0.0), (2, 2.0), (3, 3.0)):
        fetch(buffer, version, now_s=now_s)
    assert buffer.extend("b1", fence=1, now_s=4.0) == 14.0
    assert buffer.expire(11.9) == []  # b0 is acked, the others are due at 14, 12 and 13
    assert buffer.expire(12.0) == ["0/2/0", "0/3/0"]
    counts = buffer.status().counts
    assert (counts["acked"], counts["leased"], counts["ready"]) == (1, 1, 2)
    for batch_id in ("b2", "b3"):
        with pytest.raises(LeaseExpiredError):
            buffer.ack(batch_id, fence=1)
        with pytest.raises(LeaseExpiredError):
            buffer.extend(batch_id, fence=1, now_s=0.0)
    assert fetch(buffer, 2).group_ids == ("0/2/0",)


def test_an_overdue_lease_is_valid_until_it_is_taken(make_buffer, fill, lease_and_ack):
    buffer = make_buffer()
    fill(buffer, 0, 1)
    fetch(buffer, 0)
    buffer.shard("b0", rank=0)
    buffer.ack("b0", fence=1)
    assert buffer.expire(1e9) == []  # acked: no deadline any more


def test_a_nack_gives_a_lease_back_once_and_every_time(make_buffer, fill, lease_and_ack):
    buffer = make_buffer(groups_per_step=1)
    fill(buffer, 0, 1)
    fetch(buffer, 0)
    fetch(buffer, 1)
    for _ in range(2):
        buffer.nack("b0", fence=1)
    assert buffer.status().counts["ready"] == 2
    acked = lease_and_ack(buffer, 0)
    with pytest.raises(FenceError, match="is acked"):
        buffer.nack(acked, fence=1)


def test_a_group_handed_out_too_often_fails(make_buffer, fill):
    buffer = make_buffer(groups_per_step=1, max_deliver=2)
    fill(buffer, 0)
    assert fetch(buffer, 0).delivery_count == 1
    buffer.nack("b0", fence=1)
    assert fetch(buffer, 0).delivery_count == 2
    assert buffer.expire(10.0) == ["0/0/0"]
    assert buffer.status().failed_reasons == {"too_many_deliveries": 1}
    assert buffer.to_issue_again() == []


def test_a_lease_that_never_was_is_an_error_of_the_caller(make_buffer):
    buffer = make_buffer()
    for batch_id in ("b0", "b77", "nonsense"):
        with pytest.raises(FenceError, match="there is no lease"):
            buffer.shard(batch_id, rank=0)


# --- acks and publishes in order
def test_acks_come_in_the_order_of_sealing(make_buffer, fill):
    buffer = make_buffer(groups_per_step=1)
    fill(buffer, 0, 1)
    for version in (0, 1):
        buffer.shard(fetch(buffer, version).lease_id, rank=0)
    with pytest.raises(FenceError, match="cannot be acked before b0"):
        buffer.ack("b1", fence=1)


def test_a_publish_is_the_next_version_of_the_oldest_acked_batch(make_buffer, fill, lease_and_ack):
    buffer = make_buffer(groups_per_step=1)
    fill(buffer, 0, 1, 2)
    for version in (0, 1):
        lease_and_ack(buffer, version)
    fetch(buffer, 2)
    for version, batch_id in ((1, "b1"), (2, "b0"), (0, "b0"), (2, "b1")):
        with pytest.raises(FenceError, match="the next publish is version 1 of b0"):
            buffer.publish(version, batch_id=batch_id, fence=1)
    with pytest.raises(FenceError, match="b2 is not acked"):
        buffer.publish(1, batch_id="b2", fence=1)
    for _ in range(2):
        buffer.publish(1, batch_id="b0", fence=1)
    assert (buffer.status().policy_version, buffer.status().counts["consumed"]) == (1, 1)
    with pytest.raises(LeaseExpiredError):
        buffer.publish(2, batch_id="b0", fence=1)


def test_fixed_weights_consume_at_the_ack_and_publish_nothing(make_buffer, fill, lease_and_ack):
    buffer = make_buffer(groups_per_step=1, fixed_weights=True)
    fill(buffer, 0, 1, version=0)
    batch_id = lease_and_ack(buffer, 0)
    buffer.ack(batch_id, fence=1)  # the first answer was lost
    assert buffer.extend(batch_id, fence=1, now_s=3.0) == 13.0  # a heartbeat that crossed the ack
    assert (buffer.status().counts["consumed"], buffer.status().policy_version) == (1, 0)
    with pytest.raises(FenceError, match="fixed weights"):
        buffer.publish(1, batch_id=batch_id, fence=1)
    assert fetch(buffer, 0).lease_id == fetch(buffer, 0).lease_id == "b1"
    with pytest.raises(FenceError, match="starts from version 0, not 1"):
        fetch(buffer, 1)


# --- the end
def test_the_rest_makes_a_smaller_batch_and_then_the_data_end(make_buffer, fill, lease_and_ack):
    buffer = make_buffer(groups_per_step=2)
    fill(buffer, 0)
    buffer.admit("0/1/0", incarnation=0)
    buffer.end_tasks(incarnation=0)
    buffer.end_tasks(incarnation=0)
    assert fetch(buffer, 0) == Wait(reason=WaitReason.GROUP_INCOMPLETE)  # one still runs
    buffer.cancel("0/1/0", incarnation=0)
    assert fetch(buffer, 0) == Wait(reason=WaitReason.GROUP_INCOMPLETE)  # and waits to be issued again
    buffer.admit("0/1/1", incarnation=0)
    buffer.fail("0/1/1", reason="no_data", incarnation=0)
    assert buffer.status().admission_ended
    assert fetch(buffer, 0).group_ids == ("0/0/0",)
    assert fetch(buffer, 1) == Wait(reason=WaitReason.GROUP_INCOMPLETE)  # a lease may still come back
    buffer.shard("b0", rank=0)
    buffer.ack("b0", fence=1)
    assert fetch(buffer, 1) == Wait(reason=WaitReason.END_OF_DATA)
