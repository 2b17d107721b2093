"""The state of the ledger as plain structs that msgspec can write. Holds no rule.

What has ended leaves `groups` and `batches`; the little that repeated calls need of it is kept for a bounded while.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from medvista_ray.buffer.tasks import TaskIndex
from medvista_ray.types.delivery import END_STATES, GroupState

KEEP_ENDED = 1024  # ended groups and closed batches whose calls may still be repeated


class GroupEntry(msgspec.Struct, kw_only=True):
    """One group that holds a slot."""

    state: GroupState = GroupState.RUNNING
    attempt: int = 0
    num_dead_shards: int = 0  # attempts that a resume replaced do not count
    num_deliveries: int = 0  # hand-outs
    incarnation: int = 0  # of its commit
    min_policy_version: int | None = None
    record_number: int | None = None  # of its commit; None until then


class BatchEntry(msgspec.Struct, kw_only=True):
    """One batch that is leased or acked."""

    group_ids: tuple[str, ...]
    train_from_version: int
    staleness: tuple[int, ...]
    deadline_s: float
    world_size: int
    delivery_count: int
    is_acked: bool = False
    ranks: list[int] = msgspec.field(default_factory=list)  # that have fetched their shard


class PacingSettings(msgspec.Struct, kw_only=True, frozen=True):
    """What the pacing consumer asked for; the configured values until one attaches."""

    groups_per_step: int
    max_staleness: int
    world_size: int = 1
    fixed_weights: bool = False


class LedgerState(msgspec.Struct, kw_only=True):
    """Everything that the records add up to."""

    settings: PacingSettings
    groups: dict[str, GroupEntry] = msgspec.field(default_factory=dict)  # in order of admission
    batches: dict[str, BatchEntry] = msgspec.field(default_factory=dict)  # leased and acked, in order of sealing
    tasks: TaskIndex = msgspec.field(default_factory=TaskIndex)
    ended: dict[str, int] = msgspec.field(default_factory=lambda: {state.value: 0 for state in END_STATES})
    failed_reasons: dict[str, int] = msgspec.field(default_factory=dict)
    submitted: int = 0
    next_batch: int = 0
    policy_version: int = 0
    incarnation: int = 0
    fence: int = 0  # 0: nobody has attached
    filtered_in_a_row: int = 0
    is_converged: bool = False
    tasks_ended: bool = False
    last_published: tuple[int, str] | None = None  # (version, batch_id)
    returned_versions: list[int] = msgspec.field(default_factory=list)  # train_from_version of leases that went back
    stored: dict[str, tuple[int, int]] = msgspec.field(
        default_factory=dict
    )  # ended: (attempt, incarnation) of its commit
    closed: dict[str, Literal["back", "consumed"]] = msgspec.field(default_factory=dict)  # batches
    cursors: dict[str, tuple[int, int]] = msgspec.field(default_factory=dict)  # reader -> (incarnation, record number)
    cuts: list[tuple[int, int]] = msgspec.field(
        default_factory=list
    )  # (incarnation that began, record number of the cut)
