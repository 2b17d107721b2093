"""The checkpoint folder of a run: written beside, synced, renamed; the newest complete one is what a run goes on from.

    checkpoints/step-000050/learner/        model, optimizer, RNG: the learner's own files
                            buffer.msgpack  ledger, running group ids, ready groups
                            driver.json     version, task cursor, counters, seed
    checkpoints/.tmp-...                    a crash in the middle; removed by the next write

Knows files; neither what the learner writes nor what a snapshot holds.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec

from medvista_ray.errors import ConfigError
from medvista_ray.types.protocols import LearnerGroup

_log = logging.getLogger(__name__)
_SCHEMA_VERSION = 1
_NAME = re.compile(r"step-(\d{6,})(?:\.(\d+))?")  # the second number: written again at the same step
_LEARNER, _BUFFER, _DRIVER = "learner", "buffer.msgpack", "driver.json"


class DriverRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the driver itself has to remember."""

    schema_version: int = _SCHEMA_VERSION
    seed: int
    num_tasks: int  # of one epoch
    group_size: int
    policy_version: int
    incarnation: int
    next_task: int  # over all epochs
    batch_ids: list[str]  # batches that the weights contain, since the checkpoint before
    counters: dict[str, float]
    reader_cursor: tuple[int, int] = (0, 0)
    num_seen: int = 0  # committed groups that the recorder has passed
    num_recorded: int = 0  # trajectories


class Border(msgspec.Struct, frozen=True, kw_only=True):
    """A moment between two train steps: what driver and buffer were."""

    record: DriverRecord
    snapshot: bytes


async def save_checkpoint(
    folder: Path,
    border: Border,
    learner: LearnerGroup,
    *,
    keep_last: int,
    check: Callable[[], Awaitable[None]] | None = None,
) -> Path:
    """Write one checkpoint so that a crash at any moment leaves the one before usable; return its folder.

    Args:
        folder: of all checkpoints.
        border: the moment to go back to.
        learner: its weights must be those of the border.
        keep_last: how many checkpoints stay.
        check: called when the learner has written; if it raises, nothing is kept.
    """
    step = border.record.policy_version
    draft = folder / f".tmp-step-{step:06d}"
    await asyncio.to_thread(_start_draft, draft)
    await learner.save_checkpoint(str(draft / _LEARNER))
    if check is not None:
        await check()
    return await asyncio.to_thread(_finish_draft, draft, border, keep_last)


def _start_draft(draft: Path) -> None:
    draft.parent.mkdir(parents=True, exist_ok=True)
    for leftover in draft.parent.glob(".tmp-step-*"):
        shutil.rmtree(leftover)
    (draft / _LEARNER).mkdir(parents=True)


def _finish_draft(draft: Path, border: Border, keep_last: int) -> Path:
    (draft / _BUFFER).write_bytes(border.snapshot)
    (draft / _DRIVER).write_bytes(msgspec.json.format(msgspec.json.encode(border.record)))
    folder = draft.parent
    for path in sorted(draft.rglob("*")):
        _sync(path)
    _sync(draft)
    name = draft.name.removeprefix(".tmp-")
    taken = [
        int(match[2] or 0)
        for path in folder.iterdir()
        if (match := _NAME.fullmatch(path.name)) and _step(path) == border.record.policy_version
    ]
    final = folder / (f"{name}.{max(taken) + 1}" if taken else name)
    draft.rename(final)
    _sync(folder)
    for old in list_checkpoints(folder)[:-keep_last]:
        shutil.rmtree(old)
    return final


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def _is_complete(path: Path) -> bool:
    return (path / _LEARNER).is_dir() and (path / _BUFFER).is_file() and (path / _DRIVER).is_file()


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first: by resume, by train step, by writing."""
    if not folder.is_dir():
        return []
    found: list[tuple[tuple[int, int, int], Path]] = []
    for path in folder.iterdir():
        match = _NAME.fullmatch(path.name)
        if match is not None and _is_complete(path):
            order = (load_record(path).incarnation, int(match[1]), int(match[2] or 0))
            found.append((order, path))
    return [path for _, path in sorted(found)]


def find_checkpoint(path: Path) -> Path:
    """Return `path` if it is a checkpoint, else the newest one below it or its `checkpoints/`.

    Raises:
        ConfigError: there is none.
    """
    if _is_complete(path):
        return path
    for folder in (path, path / "checkpoints"):
        if checkpoints := list_checkpoints(folder):
            return checkpoints[-1]
    raise ConfigError(
        f"no complete checkpoint in {path}: nothing to resume from. Give a run directory or a step-… folder that "
        "holds learner/, buffer.msgpack and driver.json, or start the run afresh"
    )


def load_record(path: Path) -> DriverRecord:
    """Read the driver's part of a checkpoint."""
    source = path / _DRIVER
    try:
        record = msgspec.json.decode(source.read_bytes(), type=DriverRecord)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{source} is not a driver record ({error}): resume from another checkpoint") from error
    if record.schema_version != _SCHEMA_VERSION:
        raise ConfigError(f"{source} has schema_version {record.schema_version}, this package reads {_SCHEMA_VERSION}")
    return record


def load_border(path: Path) -> Border:
    """Read what driver and buffer were."""
    return Border(record=load_record(path), snapshot=(path / _BUFFER).read_bytes())


def learner_folder(path: Path) -> str:
    """Return where the learner's files of a checkpoint lie."""
    return str(path / _LEARNER)


def check_same_run(record: DriverRecord, expected: Mapping[str, int]) -> None:
    """Refuse to go on with other tasks than the checkpoint's; `ConfigError` names what differs."""
    for key, value in expected.items():
        found = getattr(record, key)
        if found != value:
            raise ConfigError(f"{key} is {value}, the checkpoint was written with {found}: resume with the same value")
