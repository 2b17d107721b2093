"""Which tasks are under way, which wait to be issued again, which are over. Knows group ids, not states.

Small for any length of a run: tasks come nearly in order, so those that are over are a mark and a few above it.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import msgspec

from medvista_ray.types.trajectories import format_group_id, parse_group_id


class ClosedTasks(msgspec.Struct):
    """The tasks of one epoch that are over: all below `low`, and those of `above`."""

    low: int = 0
    above: list[int] = msgspec.field(default_factory=list)  # sorted

    def add(self, task_index: int) -> None:
        """Add one task."""
        insort(self.above, task_index)
        while self.above and self.above[0] == self.low:
            self.above.pop(0)
            self.low += 1

    def __contains__(self, task_index: int) -> bool:
        if task_index < self.low:
            return True
        at = bisect_left(self.above, task_index)
        return at < len(self.above) and self.above[at] == task_index


class TaskIndex(msgspec.Struct):
    """The newest issue of every task that is not over."""

    issues: dict[str, int] = msgspec.field(default_factory=dict)  # "epoch/task" -> issue under way or waiting
    again: list[str] = msgspec.field(default_factory=list)  # group ids to admit, in the order in which they ended
    closed: dict[int, ClosedTasks] = msgspec.field(default_factory=dict)  # by epoch

    def next_issue(self, group_id: str) -> int | None:
        """Return the issue that this group's task is at, 0 for an unseen task, None for one that is over."""
        epoch, task_index, _ = parse_group_id(group_id)
        if epoch in self.closed and task_index in self.closed[epoch]:
            return None
        return self.issues.get(f"{epoch}/{task_index}", 0)

    def start(self, group_id: str) -> None:
        """Note that this issue is under way."""
        epoch, task_index, issue = parse_group_id(group_id)
        self.issues[f"{epoch}/{task_index}"] = issue
        if group_id in self.again:
            self.again.remove(group_id)

    def issue_again(self, group_id: str) -> None:
        """Let the task wait for its next issue."""
        epoch, task_index, issue = parse_group_id(group_id)
        self.issues[f"{epoch}/{task_index}"] = issue + 1
        self.again.append(format_group_id(epoch, task_index, issue + 1))

    def close(self, group_id: str) -> None:
        """Note that the task is over."""
        epoch, task_index, _ = parse_group_id(group_id)
        del self.issues[f"{epoch}/{task_index}"]
        self.closed.setdefault(epoch, ClosedTasks()).add(task_index)

    def drop_waiting(self) -> None:
        """Issue nothing again."""
        for group_id in self.again:
            self.close(group_id)
        self.again.clear()
