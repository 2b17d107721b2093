"""The journal: records in order, under numbers that never change, and the trajectories of committed groups.

Owns storage and retention. It knows what a record is called, not what it does: the ledger's state comes in as bytes.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Protocol

from medvista_ray.buffer.records import GroupCommitted, Record, RunResumed
from medvista_ray.types.trajectories import TrajectoryGroup


class Journal(Protocol):
    """What the replay buffer asks of a journal, in memory or on disk."""

    @property
    def first(self) -> int:
        """Number of the oldest record that is kept."""

    @property
    def position(self) -> int:
        """Number that the next record will have."""

    @property
    def base(self) -> tuple[int, bytes | None]:
        """The newest state of the ledger that is kept, and the record to replay from; None is an empty ledger."""

    @property
    def wants_base(self) -> bool:
        """Whether enough records have come since the base for a new one."""

    def append(self, record: Record, group: TrajectoryGroup | None = None) -> int:
        """Write one record; return its number. It is written when this returns."""

    def records(self, start: int) -> Iterator[tuple[int, Record]]:
        """Yield (number, record) from a number on."""

    def group(self, number: int) -> TrajectoryGroup | None:
        """Return what the commit of this number stored; None if retention has taken it."""

    def num_committed(self, start: int, stop: int) -> int:
        """Count the commits in [start, stop), those that retention has taken included."""

    def release(self, number: int) -> None:
        """Let retention take the group of this commit; releasing it twice is nothing."""

    def add_base(self, state: bytes) -> None:
        """Keep the ledger's state at the present position; records that no base needs any more may go."""

    def cut(self, record: RunResumed, *, base: bytes, groups: Mapping[int, TrajectoryGroup]) -> int:
        """Drop everything from the record's cut position on and write the record there, in one step.

        `base` is the ledger at that position, `groups` by commit number what it needs; both matter where the journal
        does not hold them any more.
        """


class InMemoryJournal:
    """A journal that lives as long as its process. Flat in memory: see `retain_ended` and `base_every`.

    It keeps the groups that hold a slot, the newest `retain_ended` of those that have ended, and between one and two
    times `base_every` records; of a commit whose record is gone it keeps the number (8 bytes), to count what was taken.
    """

    def __init__(self, *, retain_ended: int = 64, base_every: int = 4096) -> None:
        self._retain_ended = retain_ended
        self._base_every = base_every
        self._records: list[Record] = []
        self._bases: list[tuple[int, bytes | None]] = [(0, None)]  # the first is where the records begin
        self._groups: dict[int, TrajectoryGroup] = {}
        self._released: deque[int] = deque()
        self._commits = array("q")

    @property
    def first(self) -> int:
        """Number of the oldest record that is kept."""
        return self._bases[0][0]

    @property
    def position(self) -> int:
        """Number that the next record will have."""
        return self.first + len(self._records)

    @property
    def base(self) -> tuple[int, bytes | None]:
        """The newest state of the ledger that is kept, and the record to replay from."""
        return self._bases[-1]

    @property
    def wants_base(self) -> bool:
        """Whether enough records have come since the base for a new one."""
        return self.position - self.base[0] >= self._base_every

    def append(self, record: Record, group: TrajectoryGroup | None = None) -> int:
        """Write one record, with the group of a commit; return its number."""
        number = self.position
        if isinstance(record, GroupCommitted) != (group is not None):
            raise ValueError("a commit comes with its group, and no other record does")
        if group is not None:
            self._groups[number] = group
            self._commits.append(number)
        self._records.append(record)
        return number

    def records(self, start: int) -> Iterator[tuple[int, Record]]:
        """Yield (number, record) from a number on, or from the first that is kept."""
        start = max(start, self.first)
        for index in range(start - self.first, len(self._records)):
            yield self.first + index, self._records[index]

    def group(self, number: int) -> TrajectoryGroup | None:
        """Return what the commit of this number stored; None if retention has taken it."""
        return self._groups.get(number)

    def num_committed(self, start: int, stop: int) -> int:
        """Count the commits in [start, stop), those that retention has taken included."""
        return max(0, bisect_left(self._commits, stop) - bisect_left(self._commits, start))

    def release(self, number: int) -> None:
        """Let retention take the group of this commit: all but the newest `retain_ended` go."""
        if number in self._groups and number not in self._released:
            self._released.append(number)
        while len(self._released) > self._retain_ended:
            del self._groups[self._released.popleft()]

    def add_base(self, state: bytes) -> None:
        """Keep the ledger's state at the present position; drop the records before the base that it follows."""
        self._bases.append((self.position, state))
        if len(self._bases) > 2:
            num_dropped = self._bases[1][0] - self.first
            del self._records[:num_dropped]
            del self._bases[0]

    def cut(self, record: RunResumed, *, base: bytes, groups: Mapping[int, TrajectoryGroup]) -> int:
        """Drop everything from the record's cut position on and write the record there."""
        position = record.position
        if self.first <= position <= self.position:
            del self._records[position - self.first :]
            self._bases = [each for each in self._bases if each[0] <= position]
        else:
            self._records, self._bases = [], [(position, base)]
        self._groups = {number: group for number, group in self._groups.items() if number < position} | dict(groups)
        self._released = deque(number for number in self._released if number in self._groups and number not in groups)
        del self._commits[bisect_left(self._commits, position) :]
        return self.append(record)
