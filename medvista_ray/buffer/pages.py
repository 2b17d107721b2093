"""What a reader sees of the journal: committed groups and end states in order, from its cursor on. Changes nothing."""

from __future__ import annotations

from medvista_ray.buffer.entries import LedgerState
from medvista_ray.buffer.journal import Journal
from medvista_ray.buffer.records import GroupCommitted, Record, end_states
from medvista_ray.types.protocols import JournalPage
from medvista_ray.types.trajectories import TrajectoryGroup

Entry = tuple[int, TrajectoryGroup | tuple[str, str]]


def read_page(journal: Journal, state: LedgerState, *, after: tuple[int, int], limit: int) -> JournalPage:
    """Read on from a cursor (incarnation, record number); a record is never split, so a page may exceed the limit.

    A cursor behind a cut (or ahead of the journal) is answered `rewound`: what was read from the position on is
    withdrawn. `num_taken` counts the committed groups that retention has taken out of the stretch of this page.
    """
    if limit < 1:
        raise ValueError(f"limit must be >= 1, got {limit}")
    incarnation, start = after
    valid = min((at for began, at in state.cuts if began > incarnation), default=journal.position)
    if start > min(valid, journal.position):
        return JournalPage(entries=(), cursor=(state.incarnation, min(valid, journal.position)), rewound=True)
    entries: list[Entry] = []
    num_groups, stop = 0, max(start, journal.first)
    for number, record in journal.records(stop):
        if len(entries) >= limit:
            break
        found = _entries(journal, number, record)
        num_groups += sum(isinstance(content, TrajectoryGroup) for _, content in found)
        entries += found
        stop = number + 1
    return JournalPage(
        entries=tuple(entries),
        cursor=(state.incarnation, stop),
        num_taken=journal.num_committed(start, stop) - num_groups,
    )


def _entries(journal: Journal, number: int, record: Record) -> list[Entry]:
    found: list[Entry] = []
    if isinstance(record, GroupCommitted) and (group := journal.group(number)) is not None:
        found.append((number, group))
    found += [(number, (group_id, state.value)) for group_id, state in end_states(record)]
    return found
