"""The journal and its readers: numbers that never change, retention, cursors, flat memory."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvista_ray.buffer.journal import InMemoryJournal
from medvista_ray.buffer.records import CursorSet, TasksEnded
from medvista_ray.buffer.tasks import ClosedTasks
from medvista_ray.types.trajectories import TrajectoryGroup


def names(page):
    """Group ids of committed groups, and (group id, end state)."""
    return [content.group_id if isinstance(content, TrajectoryGroup) else content for _, content in page.entries]


def test_a_reader_sees_commits_and_ends_in_order(make_buffer, fill, lease_and_ack):
    buffer = make_buffer(groups_per_step=1)
    fill(buffer, 0)
    fill(buffer, 1, rewards=(1.0, 1.0))
    buffer.publish(1, batch_id=lease_and_ack(buffer, 0), fence=1)
    buffer.admit("0/2/0", incarnation=0)
    buffer.cancel("0/2/0", incarnation=0)
    page = buffer.read(after=(0, 0), limit=100)
    seen = ["0/0/0", "0/1/0", ("0/1/0", "filtered"), ("0/0/0", "consumed"), ("0/2/0", "cancelled")]
    assert (names(page), page.rewound, page.num_taken) == (seen, False, 0)
    assert buffer.read(after=page.cursor, limit=100).entries == ()


def test_a_reader_goes_on_from_its_cursor_and_no_record_is_split(make_buffer, fill):
    buffer = make_buffer()
    fill(buffer, 0, 1, rewards=(1.0, 1.0))
    first = buffer.read(after=(0, 0), limit=1)
    assert names(first) == ["0/0/0", ("0/0/0", "filtered")]
    assert names(buffer.read(after=first.cursor, limit=1)) == ["0/1/0", ("0/1/0", "filtered")]
    with pytest.raises(ValueError, match="limit must be >= 1"):
        buffer.read(after=(0, 0), limit=0)


def test_a_cursor_behind_a_cut_is_rewound_to_it(make_buffer, fill):
    buffer = make_buffer()
    fill(buffer, 0)
    early = buffer.read(after=(0, 0), limit=100).cursor
    snapshot = buffer.snapshot()
    fill(buffer, 1)
    late = buffer.read(after=early, limit=100).cursor
    buffer.set_cursor("me", late)
    buffer.cut(snapshot, contained_batch_ids=(), policy_version=0)
    fill(buffer, 1, 2)
    assert buffer.cursor("me") == late
    page = buffer.read(after=buffer.cursor("me"), limit=100)
    assert (page.rewound, page.entries, page.cursor) == (True, (), (1, early[1]))
    assert names(buffer.read(after=page.cursor, limit=100)) == ["0/1/0", "0/2/0"]
    assert names(buffer.read(after=early, limit=100)) == ["0/1/0", "0/2/0"]  # it had read nothing that was withdrawn


def test_a_cursor_of_two_lives_ago_is_rewound_to_the_earliest_cut(make_buffer, fill):
    buffer = make_buffer()
    snapshot = buffer.snapshot()
    fill(buffer, 0, 1)
    cursor = buffer.read(after=(0, 0), limit=100).cursor
    buffer.cut(snapshot, contained_batch_ids=(), policy_version=0)
    fill(buffer, 0, 1, 2)
    buffer.cut(buffer.snapshot(), contained_batch_ids=(), policy_version=0)
    page = buffer.read(after=cursor, limit=100)
    assert (page.rewound, page.cursor) == (True, (2, 1))  # record 0 is the attachment


def test_a_cursor_ahead_of_the_journal_is_rewound_to_its_end(make_buffer):
    assert make_buffer().read(after=(0, 99), limit=1).cursor == (0, 1)


def test_named_cursors_survive_a_restart_and_cost_a_record_only_when_they_move(make_buffer):
    journal = InMemoryJournal()
    buffer = make_buffer(journal=journal)
    for _ in range(3):
        buffer.set_cursor("viewer", (0, 1))
    assert journal.position == 2
    buffer = make_buffer(journal=journal, attach=False)
    assert (buffer.cursor("viewer"), buffer.cursor("nobody")) == ((0, 1), (0, 0))


def test_retention_takes_groups_that_ended_and_says_how_many(make_buffer, fill):
    buffer = make_buffer(journal=InMemoryJournal(retain_ended=2))
    fill(buffer, 0)
    fill(buffer, 1, 2, 3, 4, rewards=(1.0, 1.0))
    page = buffer.read(after=(0, 0), limit=100)
    ends = [(f"0/{task}/0", "filtered") for task in (1, 2, 3, 4)]
    assert names(page) == ["0/0/0", *ends[:2], "0/3/0", ends[2], "0/4/0", ends[3]]
    assert page.num_taken == 2


def test_record_numbers_outlive_the_records(make_buffer, fill):
    journal = InMemoryJournal(retain_ended=100, base_every=5)
    buffer = make_buffer(journal=journal)
    fill(buffer, *range(12), rewards=(1.0, 1.0))  # 25 records: one attachment, twelve admissions and commits
    assert (journal.first, journal.position) == (20, 25)
    page = buffer.read(after=(0, 3), limit=100)
    numbers = [number for number, content in page.entries if isinstance(content, TrajectoryGroup)]
    assert (numbers, page.num_taken, page.cursor) == ([20, 22, 24], 8, (0, 25))
    again = make_buffer(journal=journal, attach=False)
    assert again._ledger.dump() == buffer._ledger.dump()


def test_a_commit_comes_with_its_group_and_nothing_else_does(make_group):
    with pytest.raises(ValueError, match="a commit comes with its group"):
        InMemoryJournal().append(TasksEnded(), make_group("0/0/0"))


def test_releasing_twice_counts_once(make_buffer, fill):
    journal = InMemoryJournal(retain_ended=1)
    fill(make_buffer(journal=journal), 0, rewards=(1.0, 1.0))
    journal.release(2)
    journal.release(2)
    assert journal.group(2) is not None


def test_memory_is_flat_in_the_number_of_groups(make_buffer, fill, lease_and_ack):
    """A group of this size is 64 KiB: 600 of them would be 38 MiB."""
    journal = InMemoryJournal(retain_ended=4, base_every=64)
    buffer = make_buffer(journal=journal, groups_per_step=1, max_staleness=1)

    def train(versions):
        for version in versions:
            fill(buffer, 2 * version, version=version, num_actions=3600)
            fill(buffer, 2 * version + 1, version=version, rewards=(1.0, 1.0), num_actions=3600)
            buffer.publish(version + 1, batch_id=lease_and_ack(buffer, version), fence=1)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        warm = train(range(100))
        grown = train(range(100, 400)) - warm
    finally:
        tracemalloc.stop()
    assert buffer.status().counts["consumed"] == 400
    assert grown < 1_000_000  # bytes: what repeated calls may ask for is kept up to a bound
    assert len(buffer._ledger.dump()) < 50_000


def test_positions_grow_by_one_and_records_are_those_written():
    journal = InMemoryJournal()
    records = [CursorSet(name=str(number), incarnation=0, number=number) for number in range(5)]
    assert [journal.append(record) for record in records] == [0, 1, 2, 3, 4]
    assert list(journal.records(3)) == [(3, records[3]), (4, records[4])]


@given(st.permutations(range(20)), st.integers(0, 20))
def test_closed_tasks_are_a_set_that_stays_small(order, count):
    closed = ClosedTasks()
    for task in order[:count]:
        closed.add(task)
    assert [task for task in range(25) if task in closed] == sorted(order[:count])
    assert len(closed.above) <= count
    if count == 20:
        assert (closed.low, closed.above) == (20, [])
