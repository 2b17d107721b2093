"""Admission and execution: which group may start, which attempt counts, how a group ends that nobody trains.

Pure functions over the ledger: they say which record to write, and change nothing.
"""

from __future__ import annotations

from medvista_ray.buffer.ledger import Ledger
from medvista_ray.buffer.records import AttemptReplaced, GroupCommitted, GroupEnded
from medvista_ray.errors import FenceError
from medvista_ray.types.delivery import GroupState, WaitReason
from medvista_ray.types.trajectories import TrajectoryGroup, parse_group_id

TOO_SLOW = "too_slow"  # the last allowed issue of a task was stale or cancelled
TOO_MANY_ATTEMPTS = "too_many_attempts"  # its shards died
TOO_FEW_LIVE = "too_few_live_members"
NO_ACTION_TOKENS = "no_action_tokens"


def check_incarnation(ledger: Ledger, incarnation: int) -> None:
    """Raise `FenceError` unless this is the current incarnation."""
    if incarnation != ledger.state.incarnation:
        raise FenceError(f"incarnation {incarnation} is not the current one, {ledger.state.incarnation}")


def is_known(ledger: Ledger, group_id: str) -> bool:
    """Return whether a group was admitted before; `FenceError` for an issue out of turn or a task after the end."""
    tasks = ledger.state.tasks
    if group_id in ledger.state.groups:
        return True
    expected, issue = tasks.next_issue(group_id), parse_group_id(group_id)[2]
    if expected is None or issue < expected:
        return True  # it has ended
    if issue > expected:
        raise FenceError(f"group {group_id}: issue {expected} of this task comes first")
    if ledger.state.tasks_ended and group_id not in tasks.again:
        raise FenceError(f"group {group_id}: the end of the tasks was announced before it")
    return False


def why_not_admitted(ledger: Ledger) -> WaitReason | None:
    """Say why no group may start now; None when there is room."""
    if ledger.state.is_converged:
        return WaitReason.CONVERGED
    if ledger.capacity >= 1:
        return None
    return WaitReason.NO_CAPACITY if ledger.state.fence else WaitReason.NO_CONSUMER


def has_stored(ledger: Ledger, group: TrajectoryGroup) -> bool:
    """Return whether exactly this execution was committed before."""
    entry = ledger.state.groups.get(group.group_id)
    if entry is not None and entry.record_number is not None:
        return (entry.attempt, entry.incarnation) == (group.attempt, group.incarnation)
    return ledger.state.stored.get(group.group_id) == (group.attempt, group.incarnation)


def accepts(ledger: Ledger, group: TrajectoryGroup) -> bool:
    """Return whether this is the newest attempt of a running group in the current incarnation."""
    entry = ledger.running(group.group_id)
    return entry is not None and group.incarnation == ledger.state.incarnation and group.attempt == entry.attempt


def judge(group: TrajectoryGroup) -> GroupCommitted:
    """Say what a finished group is: ready, filtered for equal rewards, or failed for want of live members."""
    state, reason, oldest = GroupState.READY, None, None
    versions = [span.policy_version for member in group.live for span in member.version_spans]
    if len(group.live) < 2:
        state, reason = GroupState.FAILED, TOO_FEW_LIVE
    elif not versions:
        state, reason = GroupState.FAILED, NO_ACTION_TOKENS
    else:
        oldest = min(versions)
        state = GroupState.FILTERED if group.has_equal_rewards else GroupState.READY
    return GroupCommitted(
        group_id=group.group_id,
        attempt=group.attempt,
        incarnation=group.incarnation,
        state=state,
        min_policy_version=oldest,
        reason=reason,
    )


def replacement(ledger: Ledger, group_id: str, *, replaces: int) -> AttemptReplaced | GroupEnded | None:
    """Say what a dead shard does to its group: another attempt, the end, or nothing if that was said before."""
    entry = ledger.running(group_id)
    if entry is None or entry.attempt > replaces:
        return None
    if entry.attempt < replaces:
        raise FenceError(f"group {group_id} has no attempt {replaces}, the newest is {entry.attempt}")
    if entry.num_dead_shards >= ledger.config.max_attempts:
        return GroupEnded(group_id=group_id, state=GroupState.FAILED, reason=TOO_MANY_ATTEMPTS)
    return AttemptReplaced(group_id=group_id, attempt=entry.attempt + 1)


def unfinished(ledger: Ledger, group_id: str, state: GroupState) -> GroupEnded:
    """Say how a stale or cancelled group ends: the last allowed issue of its task fails as too slow instead."""
    if parse_group_id(group_id)[2] + 1 >= ledger.config.max_issues:
        return GroupEnded(group_id=group_id, state=GroupState.FAILED, reason=TOO_SLOW)
    return GroupEnded(group_id=group_id, state=state, issue_again=not ledger.state.is_converged)


def must_converge(ledger: Ledger) -> bool:
    """Return whether enough groups in a row were filtered, and no record says so yet."""
    limit = ledger.config.converged_groups
    return 0 < limit <= ledger.state.filtered_in_a_row and not ledger.state.is_converged
