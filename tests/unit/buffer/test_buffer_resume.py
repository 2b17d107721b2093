"""Restart and resume: what is replayed, what goes back, and what never does."""

from __future__ import annotations

import pytest

from medvista_ray.errors import FenceError, LeaseExpiredError, WireError
from medvista_ray.types.delivery import Admitted, CommitResult, ConsumerSettings


def fetch(buffer, version, *, fence=1, now_s=0.0):
    return buffer.fetch(fence=fence, train_from_version=version, now_s=now_s)


@pytest.fixture
def trained(make_buffer, make_journal, fill, lease_and_ack):
    """One published batch, one acked, one leased, one ready group, one running; group n has version 0."""
    buffer = make_buffer(groups_per_step=1, max_staleness=4, max_concurrent=9, journal=make_journal())
    fill(buffer, 0, 1, 2, 3)
    buffer.publish(1, batch_id=lease_and_ack(buffer, 0), fence=1)
    lease_and_ack(buffer, 1)
    fetch(buffer, 2)
    buffer.admit("0/4/0", incarnation=0)
    return buffer


def reopen(buffer, make_buffer):
    return make_buffer(groups_per_step=1, max_staleness=4, max_concurrent=9, journal=buffer._journal, attach=False)


def test_a_restart_gives_the_same_ledger(trained, make_buffer):
    again = reopen(trained, make_buffer)
    assert again._ledger.dump() == trained._ledger.dump()
    assert again.status() == trained.status()


def test_after_a_restart_an_open_lease_has_its_full_time_again(trained, make_buffer):
    again = reopen(trained, make_buffer)
    assert again.expire(1_000.0) == []  # the first clock that the new process shows: due at 1010
    assert again.expire(1_009.9) == []
    assert again.expire(1_010.0) == ["0/2/0"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_commit_killed_around_its_write_is_there_or_can_be_repeated(
    when, make_buffer, make_journal, make_group, killed
):
    journal = make_journal()
    buffer = make_buffer(journal=journal)
    buffer.admit("0/0/0", incarnation=0)
    journal.armed = (when, 0)
    with pytest.raises(killed):
        buffer.commit(make_group("0/0/0"))
    buffer = make_buffer(journal=journal, attach=False)
    assert buffer.status().counts["ready"] == (1 if when == "after" else 0)
    assert buffer.commit(make_group("0/0/0")) is CommitResult.ACCEPTED
    assert (buffer.status().counts["ready"], buffer.status().counts["submitted"]) == (1, 1)


def test_a_resume_consumes_what_the_weights_contain_and_gives_the_rest_back(trained):
    incarnation = trained.cut(trained.snapshot(), contained_batch_ids=["b0", "b1"], policy_version=2)
    status = trained.status()
    assert (incarnation, status.incarnation, status.policy_version, status.fence) == (1, 1, 2, 1)
    assert {key: status.counts[key] for key in ("consumed", "ready", "running", "leased", "acked")} == {
        "consumed": 2,
        "ready": 2,
        "running": 1,
        "leased": 0,
        "acked": 0,
    }
    assert trained.running() == [Admitted(group_id="0/4/0", attempt=1, incarnation=1)]


def test_a_resume_from_older_weights_trains_the_acked_batch_again(trained):
    trained.cut(trained.snapshot(), contained_batch_ids=["b0"], policy_version=1)
    lease = fetch(trained, 1)
    assert (lease.lease_id, lease.group_ids, lease.delivery_count) == ("b3", ("0/1/0",), 2)
    with pytest.raises(LeaseExpiredError):
        trained.shard("b2", rank=0)


def test_what_came_after_the_checkpoint_is_withdrawn_and_admitted_again(make_buffer, make_group, fill, lease_and_ack):
    buffer = make_buffer(groups_per_step=1)
    fill(buffer, 0)
    batch_id = lease_and_ack(buffer, 0)
    snapshot = buffer.snapshot()
    buffer.publish(1, batch_id=batch_id, fence=1)
    fill(buffer, 1, version=1)
    buffer.end_tasks(incarnation=0)
    late = make_group("0/1/0")
    assert buffer.cut(snapshot, contained_batch_ids=[batch_id], policy_version=1) == 1
    assert (buffer.status().counts["submitted"], buffer.status().counts["consumed"]) == (1, 1)
    assert buffer.admit("0/1/0", incarnation=1) == Admitted(group_id="0/1/0", attempt=0, incarnation=1)
    assert buffer.commit(late) is CommitResult.SUPERSEDED  # the zombie of the life before
    assert buffer.commit(make_group("0/1/0", incarnation=1)) is CommitResult.ACCEPTED
    assert not buffer.status().admission_ended  # the driver says the end of tasks again


def test_a_resume_can_be_repeated_and_every_one_is_a_new_life(trained):
    snapshot = trained.snapshot()
    lives = [trained.cut(snapshot, contained_batch_ids=["b0"], policy_version=1) for _ in range(3)]
    assert lives == [1, 2, 3]
    assert trained.running() == [Admitted(group_id="0/4/0", attempt=1, incarnation=3)]


def test_a_fresh_process_resumes_from_the_snapshot_alone(trained, make_buffer):
    samples = trained.shard("b1", rank=0).samples
    fresh = make_buffer(groups_per_step=1, max_staleness=4, max_concurrent=9, attach=False)
    assert fresh.cut(trained.snapshot(), contained_batch_ids=["b0"], policy_version=1) == 1
    fence = fresh.attach(ConsumerSettings(groups_per_step=1, max_staleness=4), incarnation=1).fence
    lease = fetch(fresh, 1, fence=fence)
    again = fresh.shard(lease.lease_id, rank=0).samples
    assert [s.token_ids.tolist() for s in again] == [s.token_ids.tolist() for s in samples]
    assert [s.advantages.tolist() for s in again] == [s.advantages.tolist() for s in samples]
    assert reopen(fresh, make_buffer)._ledger.dump() == fresh._ledger.dump()


def test_delivery_counts_batch_ids_and_fences_do_not_go_back(make_buffer, fill):
    buffer = make_buffer(groups_per_step=1, max_deliver=3)
    fill(buffer, 0)
    snapshot = buffer.snapshot()
    for delivery in (1, 2, 3):
        lease = fetch(buffer, 0, fence=delivery)
        assert (lease.lease_id, lease.delivery_count) == (f"b{delivery - 1}", delivery)
        incarnation = buffer.cut(snapshot, contained_batch_ids=(), policy_version=0)
        attached = buffer.attach(ConsumerSettings(groups_per_step=1, max_staleness=2), incarnation=incarnation)
        assert attached.fence == delivery + 1
    fetch(buffer, 0, fence=4)
    assert buffer.expire(10.0) == ["0/0/0"]
    assert buffer.status().failed_reasons == {"too_many_deliveries": 1}


@pytest.mark.parametrize(("batch_id", "text"), [("b2", "never acked"), ("b9", "sealed after the snapshot")])
def test_weights_cannot_contain_a_batch_that_was_not_acked(batch_id, text, trained):
    before = trained._ledger.dump()
    with pytest.raises(FenceError, match=text):
        trained.cut(trained.snapshot(), contained_batch_ids=[batch_id], policy_version=2)
    assert trained._ledger.dump() == before


@pytest.mark.parametrize("data", [b"", b"nonsense", b"\x94\x07\x00\xc4\x00\x80"])
def test_a_damaged_snapshot_is_refused(data, trained):
    with pytest.raises(WireError):
        trained.cut(data, contained_batch_ids=(), policy_version=0)
