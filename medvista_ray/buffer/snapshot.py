"""The buffer's part of a checkpoint: the ledger, the journal's position, and the groups that were not consumed yet."""

from __future__ import annotations

import msgspec

from medvista_ray.errors import WireError
from medvista_ray.types.trajectories import TrajectoryGroup
from medvista_ray.types.wire import decode_group, encode_group

SCHEMA_VERSION = 1


class _SnapshotWire(msgspec.Struct, array_like=True):
    schema_version: int
    position: int
    ledger: bytes
    groups: dict[int, bytes]  # commit number -> group


class Snapshot(msgspec.Struct, kw_only=True, frozen=True):
    """What a resume needs of the buffer."""

    position: int  # record number that comes next
    ledger: bytes
    groups: dict[int, TrajectoryGroup]  # ready, leased and acked, by commit number


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """Write a snapshot as msgpack bytes."""
    groups = {number: encode_group(group) for number, group in snapshot.groups.items()}
    return msgspec.msgpack.encode(_SnapshotWire(SCHEMA_VERSION, snapshot.position, snapshot.ledger, groups))


def decode_snapshot(data: bytes) -> Snapshot:
    """Read a snapshot; `WireError` says what is wrong with the bytes."""
    try:
        wire = msgspec.msgpack.decode(data, type=_SnapshotWire)
    except msgspec.DecodeError as error:
        raise WireError(f"not a snapshot of a replay buffer: {error}") from error
    if wire.schema_version != SCHEMA_VERSION:
        raise WireError(f"a snapshot of schema {wire.schema_version} cannot be read, only {SCHEMA_VERSION}")
    groups = {number: decode_group(group) for number, group in wire.groups.items()}
    return Snapshot(position=wire.position, ledger=wire.ledger, groups=groups)
