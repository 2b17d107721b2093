"""Admission, attempts and ends of groups that nobody trains, each rule with its numbers."""

from __future__ import annotations

import pytest

from medvista_ray.errors import FenceError
from medvista_ray.types.delivery import Admitted, CommitResult, Wait, WaitReason


def test_capacity_is_the_smaller_of_the_two_limits(make_buffer, fill):
    buffer = make_buffer(groups_per_step=2, max_staleness=1, max_concurrent=3)
    assert buffer.status().capacity == 3  # min(3 - 0, 2 * 2 - 0)
    buffer.admit("0/0/0", incarnation=0)
    assert buffer.status().capacity == 2  # min(3 - 1, 4 - 1)
    fill(buffer, 1, 2)
    assert buffer.status().capacity == 1  # min(3 - 1, 4 - 3)
    buffer.admit("0/3/0", incarnation=0)
    assert buffer.admit("0/4/0", incarnation=0) == Wait(reason=WaitReason.NO_CAPACITY)
    counts = buffer.status().counts
    assert (counts["running"], counts["ready"], counts["submitted"]) == (2, 2, 4)


def test_without_a_consumer_groups_fill_the_configured_room_and_then_wait_for_one(make_buffer):
    buffer = make_buffer(attach=False, groups_per_step=1, max_staleness=1)
    assert isinstance(buffer.admit("0/0/0", incarnation=0), Admitted)
    assert isinstance(buffer.admit("0/1/0", incarnation=0), Admitted)
    assert buffer.admit("0/2/0", incarnation=0) == Wait(reason=WaitReason.NO_CONSUMER)


def test_a_repeated_admission_takes_one_slot(make_buffer):
    buffer = make_buffer(max_concurrent=1)
    first = buffer.admit("0/0/0", incarnation=0)
    assert buffer.admit("0/0/0", incarnation=0) == first == Admitted(group_id="0/0/0", attempt=0, incarnation=0)
    assert buffer.status().counts["submitted"] == 1


def test_an_admission_repeated_after_its_group_ended_takes_no_slot(make_buffer, fill):
    buffer = make_buffer()
    fill(buffer, 0, rewards=(1.0, 1.0))
    assert isinstance(buffer.admit("0/0/0", incarnation=0), Admitted)
    assert (buffer.status().counts["submitted"], buffer.status().counts["running"]) == (1, 0)


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("admit", {"group_id": "0/0/0"}),
        ("attempt", {"group_id": "0/0/0", "replaces": 0}),
        ("cancel", {"group_id": "0/0/0"}),
        ("fail", {"group_id": "0/0/0", "reason": "no_data"}),
        ("end_tasks", {}),
    ],
)
@pytest.mark.parametrize("incarnation", [0, 2])
def test_another_incarnation_is_refused(call, arguments, incarnation, make_buffer):
    buffer = make_buffer()
    buffer.cut(buffer.snapshot(), contained_batch_ids=(), policy_version=0)
    with pytest.raises(FenceError, match=f"incarnation {incarnation}"):
        getattr(buffer, call)(**arguments, incarnation=incarnation)


def test_an_issue_out_of_turn_is_refused(make_buffer):
    buffer = make_buffer()
    with pytest.raises(FenceError, match="issue 0 of this task comes first"):
        buffer.admit("0/0/1", incarnation=0)
    buffer.admit("0/0/0", incarnation=0)
    with pytest.raises(FenceError, match="issue 0 of this task comes first"):
        buffer.admit("0/0/1", incarnation=0)


def test_a_new_task_after_the_end_of_the_tasks_is_refused_and_an_old_one_is_not(make_buffer):
    buffer = make_buffer()
    buffer.admit("0/0/0", incarnation=0)
    buffer.end_tasks(incarnation=0)
    buffer.cancel("0/0/0", incarnation=0)
    assert isinstance(buffer.admit("0/0/1", incarnation=0), Admitted)
    with pytest.raises(FenceError, match="the end of the tasks"):
        buffer.admit("0/1/0", incarnation=0)


# --- commits
def test_a_commit_of_the_newest_attempt_is_accepted_once_and_every_time(make_buffer, make_group):
    buffer = make_buffer()
    buffer.admit("0/0/0", incarnation=0)
    assert buffer.commit(make_group("0/0/0")) is CommitResult.ACCEPTED
    assert buffer.commit(make_group("0/0/0")) is CommitResult.ACCEPTED
    assert buffer.status().counts["ready"] == 1


@pytest.mark.parametrize("fields", [{"attempt": 0}, {"attempt": 2}, {"attempt": 1, "incarnation": 1}])
def test_a_commit_of_another_execution_is_superseded(fields, make_buffer, make_group):
    buffer = make_buffer()
    buffer.admit("0/0/0", incarnation=0)
    buffer.attempt("0/0/0", replaces=0, incarnation=0)
    assert buffer.commit(make_group("0/0/0", **fields)) is CommitResult.SUPERSEDED
    assert buffer.commit(make_group("0/0/0", attempt=1)) is CommitResult.ACCEPTED
    assert buffer.commit(make_group("0/0/0", **fields)) is CommitResult.SUPERSEDED


def test_a_commit_of_a_group_that_was_never_admitted_is_superseded(make_buffer, make_group):
    assert make_buffer().commit(make_group("0/7/0")) is CommitResult.SUPERSEDED


def test_equal_rewards_end_a_group_as_filtered_and_the_answer_can_be_repeated(make_buffer, make_group):
    buffer = make_buffer()
    buffer.admit("0/0/0", incarnation=0)
    group = make_group("0/0/0", rewards=(0.5, 0.5, 0.5))
    assert [buffer.commit(group), buffer.commit(group)] == [CommitResult.ACCEPTED] * 2
    status = buffer.status()
    assert (status.counts["filtered"], status.num_filtered_in_a_row, status.capacity) == (1, 1, 6)


@pytest.mark.parametrize(
    ("fields", "state", "reason"),
    [
        ({"rewards": (0.0, 1.0, 0.5), "num_broken": 2}, "failed", {"too_few_live_members": 1}),
        ({"rewards": (0.0, 1.0, 0.5), "num_broken": 1}, "ready", {}),
        ({"rewards": (0.0, 0.0, 0.5), "num_broken": 1}, "filtered", {}),  # the broken member's reward does not count
        ({"num_actions": 0}, "failed", {"no_action_tokens": 1}),
    ],
)
def test_what_a_commit_makes_of_a_group(fields, state, reason, make_buffer, make_group):
    buffer = make_buffer()
    buffer.admit("0/0/0", incarnation=0)
    buffer.commit(make_group("0/0/0", **fields))
    assert (buffer.status().counts[state], buffer.status().failed_reasons) == (1, reason)


# --- attempts and ends
def test_a_dead_shard_gives_the_group_its_next_attempt_in_the_same_slot(make_buffer):
    buffer = make_buffer()
    buffer.admit("0/0/0", incarnation=0)
    second = Admitted(group_id="0/0/0", attempt=1, incarnation=0)
    assert buffer.attempt("0/0/0", replaces=0, incarnation=0) == second
    assert buffer.attempt("0/0/0", replaces=0, incarnation=0) == second  # the first answer was lost
    assert buffer.running() == [second]
    with pytest.raises(FenceError, match="no attempt 5"):
        buffer.attempt("0/0/0", replaces=5, incarnation=0)


def test_more_dead_shards_than_allowed_fail_the_group(make_buffer):
    buffer = make_buffer(max_attempts=2)
    buffer.admit("0/0/0", incarnation=0)
    assert buffer.attempt("0/0/0", replaces=0, incarnation=0).attempt == 1
    assert buffer.attempt("0/0/0", replaces=1, incarnation=0).attempt == 2
    assert buffer.attempt("0/0/0", replaces=2, incarnation=0) is None
    assert buffer.status().failed_reasons == {"too_many_attempts": 1}
    assert buffer.to_issue_again() == []


def test_resumes_do_not_count_as_dead_shards(make_buffer):
    buffer = make_buffer(max_attempts=1)
    buffer.admit("0/0/0", incarnation=0)
    for attempt in (1, 2, 3):
        incarnation = buffer.cut(buffer.snapshot(), contained_batch_ids=(), policy_version=0)
        assert buffer.running() == [Admitted(group_id="0/0/0", attempt=attempt, incarnation=incarnation)]
    assert buffer.attempt("0/0/0", replaces=3, incarnation=3).attempt == 4
    assert buffer.attempt("0/0/0", replaces=4, incarnation=3) is None


def test_a_cancelled_task_is_issued_again_until_its_last_issue_fails_as_too_slow(make_buffer):
    buffer = make_buffer(max_issues=3)
    for issue in (0, 1):
        buffer.admit(f"0/4/{issue}", incarnation=0)
        buffer.cancel(f"0/4/{issue}", incarnation=0)
        buffer.cancel(f"0/4/{issue}", incarnation=0)
        assert buffer.to_issue_again() == [f"0/4/{issue + 1}"]
    buffer.admit("0/4/2", incarnation=0)
    buffer.cancel("0/4/2", incarnation=0)
    counts = buffer.status().counts
    assert (counts["cancelled"], counts["failed"], counts["submitted"]) == (2, 1, 3)
    assert (buffer.status().failed_reasons, buffer.to_issue_again()) == ({"too_slow": 1}, [])


def test_only_a_running_group_can_be_cancelled_or_failed(make_buffer, fill):
    buffer = make_buffer()
    fill(buffer, 0)
    buffer.cancel("0/0/0", incarnation=0)
    buffer.fail("0/0/0", reason="no_data", incarnation=0)
    buffer.cancel("0/9/0", incarnation=0)
    assert buffer.status().counts["ready"] == 1


def test_a_failed_group_is_not_issued_again_and_its_reasons_are_counted_by_kind(make_buffer):
    buffer = make_buffer()
    for task, reason in enumerate(["ImageError: 17 of a.png", "ImageError: 4 of b.png", "no_data"]):
        buffer.admit(f"0/{task}/0", incarnation=0)
        buffer.fail(f"0/{task}/0", reason=reason, incarnation=0)
    assert buffer.status().failed_reasons == {"ImageError": 2, "no_data": 1}
    assert buffer.to_issue_again() == []


# --- convergence
def test_enough_filtered_groups_in_a_row_end_admission_and_hand_out_the_rest(make_buffer, make_group, fill):
    buffer = make_buffer(converged_groups=2, groups_per_step=3)
    fill(buffer, 0, rewards=(1.0, 1.0))
    fill(buffer, 1)  # one with different rewards starts the count again
    fill(buffer, 2, rewards=(1.0, 1.0))
    buffer.admit("0/3/0", incarnation=0)
    buffer.cancel("0/3/0", incarnation=0)
    buffer.admit("0/4/0", incarnation=0)
    assert not buffer.status().admission_ended
    fill(buffer, 5, rewards=(1.0, 1.0))
    status = buffer.status()
    assert (status.admission_ended, status.counts["cancelled"], status.counts["running"]) == (True, 2, 0)
    assert buffer.to_issue_again() == []
    assert buffer.admit("0/6/0", incarnation=0) == Wait(reason=WaitReason.CONVERGED)
    assert buffer.admit("0/4/0", incarnation=0) == Wait(reason=WaitReason.CONVERGED)
    assert buffer.commit(make_group("0/4/0")) is CommitResult.SUPERSEDED
    assert buffer.fetch(fence=1, train_from_version=0, now_s=0.0).group_ids == ("0/1/0",)  # fewer than a batch


def test_zero_converged_groups_means_never(make_buffer, fill):
    buffer = make_buffer(converged_groups=0)
    fill(buffer, *range(50), rewards=(1.0, 1.0))
    assert (buffer.status().num_filtered_in_a_row, buffer.status().admission_ended) == (50, False)


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_convergence_killed_halfway_is_finished_by_the_restart(writes, make_buffer, make_group, make_journal, killed):
    journal = make_journal()
    buffer = make_buffer(journal=journal, converged_groups=1)
    for task in (0, 1, 2):
        buffer.admit(f"0/{task}/0", incarnation=0)
    journal.armed = ("after", writes)  # commit, converge, cancel, cancel
    with pytest.raises(killed):
        buffer.commit(make_group("0/0/0", rewards=(1.0, 1.0)))
    buffer = make_buffer(journal=journal, attach=False, converged_groups=1)
    counts = buffer.status().counts
    assert (counts["filtered"], counts["cancelled"], buffer.status().admission_ended) == (1, 2, True)
