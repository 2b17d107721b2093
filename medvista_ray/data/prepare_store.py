"""What a preparation knows so far: a database in the folder that is being prepared. Knows rows and keys; no images.

Everything since the last commit is forgotten when the process dies; the counts of drafts and rows always agree.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

import msgspec

from medvista_ray.data.manifest import Split
from medvista_ray.data.rows import TaskRow
from medvista_ray.errors import ConfigError, DataError

_CACHE_KIB = 512  # of pages; the rest stays on disk
_TABLES = """
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rows (
    id INTEGER PRIMARY KEY, task_id TEXT UNIQUE, split TEXT, lot BLOB, place TEXT, line BLOB
);
CREATE INDEX IF NOT EXISTS lots ON rows (lot);
CREATE TABLE IF NOT EXISTS keys (kind TEXT, value TEXT, row INTEGER, PRIMARY KEY (kind, value, row)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS patients (digest BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID;
"""
_FIND_LEAKS = """
CREATE TEMP TABLE leaks AS SELECT kind, value FROM keys JOIN rows ON rows.id = keys.row
GROUP BY kind, value HAVING count(DISTINCT split) > 1
"""
_ROWS_OF_LEAKS = """
FROM leaks JOIN keys ON keys.kind = leaks.kind AND keys.value = leaks.value JOIN rows ON rows.id = keys.row
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """Something that must not be in both splits."""

    kind: Literal["image", "patient"]
    value: str  # digest of the bytes, or pseudonym


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """Two rows in different splits with one key."""

    kind: str
    value: str
    train: str  # where the rows come from
    held_out: str


class PrepareStore:
    """Rows, keys and pseudonyms on disk; a context manager that closes the database."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self.num_drafts = int(str(self._get("drafts", 0)))  # that are done with, whatever became of them
        self.num_left_out = int(str(self._get("left_out", 0)))
        self.num_clipped = int(str(self._get("clipped", 0)))  # boxes that left their image
        self.num_empty = int(str(self._get("empty", 0)))  # boxes and masks that mark nothing

    @classmethod
    def open(cls, folder: Path, path: Path, *, fingerprint: str) -> PrepareStore:
        """Open what an earlier preparation left, or begin; `ConfigError` if that one was another."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(path)
            database.execute("PRAGMA synchronous=OFF")  # a killed process loses nothing; after a power loss: --fresh
            database.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
            database.executescript(_TABLES)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"--out {folder}: {error}; choose another, or --fresh") from error
        store = cls(database)
        if store._get("fingerprint", fingerprint) != fingerprint:
            database.close()
            raise ConfigError(f"--out {folder} holds the beginning of another preparation: choose another, or --fresh")
        store._set("fingerprint", fingerprint)
        store.commit()
        return store

    def __enter__(self) -> PrepareStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def leave_out(self) -> None:
        """Count a draft that is not wanted."""
        self.num_left_out += 1
        self.num_drafts += 1

    def pass_over(self) -> None:
        """Count a draft that gives no row: it marks nothing, or came before."""
        self.num_drafts += 1

    def holds(self, task_id: str) -> bool:
        """Return whether there is a row with this task_id."""
        return self._database.execute("SELECT 1 FROM rows WHERE task_id = ?", (task_id,)).fetchone() is not None

    def add(self, row: TaskRow, *, split: Split | None, lot: bytes, keys: tuple[Key, ...], where: str) -> None:
        """Store a row; a second row with its task_id is refused.

        Args:
            row: its own split is not read.
            split: None = to be drawn by `lot`, once all rows are there.
            lot: equal for rows that stay together; the lowest lots are held out.
            keys: what must not be in both splits.
            where: for people.
        """
        values = (str(row.task_id), split, lot, where, msgspec.json.encode(row))
        cursor = self._database.execute(
            "INSERT OR IGNORE INTO rows (task_id, split, lot, place, line) VALUES (?, ?, ?, ?, ?)", values
        )
        if cursor.rowcount:
            self._database.executemany(
                "INSERT OR IGNORE INTO keys VALUES (?, ?, ?)", [(key.kind, key.value, cursor.lastrowid) for key in keys]
            )
        else:
            (first,) = self._database.execute("SELECT place FROM rows WHERE task_id = ?", values[:1]).fetchone()
            raise DataError(f"{where}: task_id {row.task_id!r} is that of {first} already")
        self.num_drafts += 1

    def pseudonym(self, patient: str) -> str:
        """Return the name that stands for a patient in this folder: a number in order of appearance."""
        digest = hashlib.sha256(patient.encode("utf-8", "surrogateescape")).digest()
        found = self._database.execute("SELECT number FROM patients WHERE digest = ?", (digest,)).fetchone()
        if found is None:
            found = self._database.execute("SELECT count(*) + 1 FROM patients").fetchone()
            self._database.execute("INSERT INTO patients VALUES (?, ?)", (digest, found[0]))
        return f"p{found[0]:06d}"

    def draw_splits(self, held_out_share: float) -> None:
        """Hold out the lowest lots: a share of them, at least one and not all."""
        (num_lots,) = self._database.execute("SELECT count(DISTINCT lot) FROM rows WHERE split IS NULL").fetchone()
        num_held_out = max(1, min(round(held_out_share * num_lots), num_lots - 1))
        self._database.execute(
            "UPDATE rows SET split = 'held_out' WHERE split IS NULL AND lot IN "
            "(SELECT DISTINCT lot FROM rows WHERE split IS NULL ORDER BY lot LIMIT ?)",
            (num_held_out,),
        )
        self._database.execute("UPDATE rows SET split = 'train' WHERE split IS NULL")

    def find_leak(self) -> Leak | None:
        """Look for keys in both splits; return the first training row with such a key, and a held-out one."""
        self._database.execute(_FIND_LEAKS)
        found = self._database.execute(
            f"SELECT leaks.kind, leaks.value, place {_ROWS_OF_LEAKS} WHERE split = 'train' ORDER BY rows.id LIMIT 1"
        ).fetchone()
        if found is None:
            return None
        kind, value, train = found
        (held_out,) = self._database.execute(
            f"SELECT place {_ROWS_OF_LEAKS} WHERE split = 'held_out' AND leaks.kind = ? AND leaks.value = ? "
            "ORDER BY rows.id LIMIT 1",
            (kind, value),
        ).fetchone()
        return Leak(kind=kind, value=value, train=train, held_out=held_out)

    def drop_leaks(self) -> int:
        """Delete the training rows with a key that `find_leak` found in both splits; return how many."""
        dropped = self._database.execute(
            f"DELETE FROM rows WHERE split = 'train' AND id IN (SELECT keys.row {_ROWS_OF_LEAKS})"
        ).rowcount
        self._database.execute("DELETE FROM keys WHERE row NOT IN (SELECT id FROM rows)")
        return dropped

    def rows(self) -> Iterator[TaskRow]:
        """Yield the rows with their split, in the order in which they came."""
        for split, line in self._database.execute("SELECT split, line FROM rows ORDER BY id"):
            yield msgspec.structs.replace(msgspec.json.decode(line, type=TaskRow), split=split)

    def index_files(self, names: Iterable[str]) -> None:
        """Keep which files the rows name; `names_file` looks there."""
        self._database.execute("CREATE TEMP TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY) WITHOUT ROWID")
        self._database.executemany("INSERT OR IGNORE INTO files VALUES (?)", ((name,) for name in names))

    def names_file(self, name: str) -> bool:
        """Return whether a row names a file."""
        return self._database.execute("SELECT 1 FROM files WHERE name = ?", (name,)).fetchone() is not None

    def count_splits(self) -> dict[str, int]:
        """Count the rows of each split."""
        return dict(self._database.execute("SELECT split, count(*) FROM rows GROUP BY split").fetchall())

    def count_images(self) -> int:
        """Count the distinct images of the rows."""
        (count,) = self._database.execute("SELECT count(DISTINCT value) FROM keys WHERE kind = 'image'").fetchone()
        return int(count)

    def commit(self) -> None:
        """Make everything so far survive this process."""
        self._set("drafts", self.num_drafts)
        self._set("left_out", self.num_left_out)
        self._set("clipped", self.num_clipped)
        self._set("empty", self.num_empty)
        self._database.commit()

    def _get(self, name: str, default: object) -> object:
        found = self._database.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
        return default if found is None else found[0]

    def _set(self, name: str, value: object) -> None:
        self._database.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, value))
