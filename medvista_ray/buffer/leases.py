"""Batches and their leases: what may be sealed, who may claim it, what goes back with what.

Pure functions over the ledger: they say which record to write, or which wait or error to answer, and change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from medvista_ray.buffer.entries import BatchEntry, LedgerState
from medvista_ray.buffer.ledger import Ledger
from medvista_ray.buffer.records import BatchesReturned, RunResumed
from medvista_ray.config.schema import BufferConfig
from medvista_ray.errors import ConfigError, FenceError, LeaseExpiredError
from medvista_ray.types.delivery import ConsumerSettings, GroupState, WaitReason


def check_settings(config: BufferConfig, settings: ConsumerSettings) -> None:
    """Raise `ConfigError` if a consumer asks for more than the configuration allows."""
    bounds = (
        ("groups_per_step", settings.groups_per_step, 1, config.groups_per_step),
        ("max_staleness", settings.max_staleness, 0, config.max_staleness),
    )
    for key, value, low, high in bounds:
        if not low <= value <= high:
            raise ConfigError(f"buffer.{key} of a consumer must be in [{low}, {high}], got {value}")
    if settings.world_size < 1:
        raise ConfigError(f"world_size of a consumer must be >= 1, got {settings.world_size}")


def check_fence(ledger: Ledger, fence: int) -> None:
    """Raise `FenceError` unless this fence holds the stream."""
    if fence < 1 or fence != ledger.state.fence:
        raise FenceError(f"fence {fence} does not hold the stream, {ledger.state.fence} does")


def open_lease(ledger: Ledger, train_from_version: int) -> str | None:
    """Return the lease that was sealed for this version and is neither acked nor gone."""
    for batch_id, batch in ledger.state.batches.items():
        if batch.train_from_version == train_from_version and not batch.is_acked:
            return batch_id
    return None


def check_train_from(ledger: Ledger, train_from_version: int) -> None:
    """Raise unless the next batch starts from this version; `LeaseExpiredError` if leases of the caller went back."""
    state = ledger.state
    expected = state.policy_version + (0 if state.settings.fixed_weights else len(state.batches))
    if train_from_version == expected:
        return
    lost = range(expected, train_from_version)
    if lost and all(version in state.returned_versions for version in lost):
        raise LeaseExpiredError(f"the batch of version {expected} has gone back; the next one starts from it again")
    raise FenceError(f"the next batch starts from version {expected}, not {train_from_version}")


def is_too_far_ahead(ledger: Ledger, train_from_version: int) -> bool:
    """Return whether no group could be fresh enough for this version: no token is newer than what is accepted."""
    settings = ledger.state.settings
    return not settings.fixed_weights and train_from_version - ledger.state.policy_version > settings.max_staleness


def staleness(ledger: Ledger, group_id: str, train_from_version: int) -> int:
    """Count the versions between a group's oldest token and the weights that a train step starts from."""
    oldest = ledger.state.groups[group_id].min_policy_version
    if oldest is None:
        raise ValueError(f"group {group_id} has no tokens to be trained on")
    return train_from_version - oldest


def stale(ledger: Ledger, train_from_version: int) -> list[str]:
    """Return the ready groups that are too old for a train step from this version."""
    settings = ledger.state.settings
    if settings.fixed_weights:
        return []
    return [key for key in ledger.ready() if staleness(ledger, key, train_from_version) > settings.max_staleness]


def why_no_batch(ledger: Ledger, *, num_stale: int) -> WaitReason:
    """Say why a fetch has nothing to give."""
    if ledger.admission_ended and not ledger.count(GroupState.READY, GroupState.LEASED):
        return WaitReason.END_OF_DATA
    if num_stale:
        return WaitReason.STALE_DROPPED
    if ledger.state.filtered_in_a_row >= ledger.state.settings.groups_per_step:
        return WaitReason.ALL_FILTERED
    return WaitReason.GROUP_INCOMPLETE


def open_batch(ledger: Ledger, batch_id: str) -> BatchEntry:
    """Return a leased or acked batch; `LeaseExpiredError` if it is gone, `FenceError` if there never was one."""
    batch = ledger.state.batches.get(batch_id)
    if batch is not None:
        return batch
    number = batch_id.removeprefix("b")
    if number.isdigit() and int(number) < ledger.state.next_batch:
        raise LeaseExpiredError(f"lease {batch_id} has gone back or is over")
    raise FenceError(f"there is no lease {batch_id}")


def check_may_ack(ledger: Ledger, batch_id: str) -> None:
    """Raise `FenceError` unless every rank has its shard and no older batch waits for its ack."""
    batch = ledger.state.batches[batch_id]
    missing = sorted(set(range(batch.world_size)) - set(batch.ranks))
    if missing:
        raise FenceError(f"lease {batch_id} cannot be acked: ranks {missing} have not fetched their shard")
    oldest = next(key for key, each in ledger.state.batches.items() if not each.is_acked)
    if oldest != batch_id:
        raise FenceError(f"lease {batch_id} cannot be acked before {oldest}, which was sealed earlier")


def check_may_publish(ledger: Ledger, version: int, batch_id: str) -> None:
    """Raise unless this is the next version, made from the oldest acked batch; `LeaseExpiredError` if that is gone."""
    state = ledger.state
    if state.settings.fixed_weights:
        raise FenceError("a consumer with fixed weights publishes nothing")
    if not open_batch(ledger, batch_id).is_acked:
        raise FenceError(f"version {version} cannot be published: lease {batch_id} is not acked")
    oldest = next(key for key, each in state.batches.items() if each.is_acked)
    if (version, batch_id) != (state.policy_version + 1, oldest):
        raise FenceError(
            f"the next publish is version {state.policy_version + 1} of {oldest}, got {version} of {batch_id}"
        )


def going_back(ledger: Ledger, batch_id: str) -> BatchesReturned:
    """Say what goes back with a lease: every lease sealed after it, and the end of groups handed out too often."""
    batches, groups = ledger.state.batches, ledger.state.groups
    order = list(batches)
    gone = tuple(key for key in order[order.index(batch_id) :] if not batches[key].is_acked)
    worn = (
        group_id
        for key in gone
        for group_id in batches[key].group_ids
        if groups[group_id].num_deliveries >= ledger.config.max_deliver
    )
    return BatchesReturned(batch_ids=gone, failed_group_ids=tuple(worn))


def resumption(
    past: LedgerState, present: LedgerState, *, contained_batch_ids: Iterable[str], policy_version: int, position: int
) -> RunResumed:
    """Say what a resume does to the ledger of a checkpoint; `present` has what never goes back."""
    asked = set(contained_batch_ids)
    for batch_id in asked - past.batches.keys():
        if int(batch_id.removeprefix("b")) >= past.next_batch:
            raise FenceError(
                f"the checkpoint's weights cannot contain batch {batch_id}: it was sealed after the snapshot"
            )
    contained = tuple(key for key in past.batches if key in asked)
    for batch_id in contained:
        if not past.batches[batch_id].is_acked:
            raise FenceError(f"the checkpoint's weights cannot contain batch {batch_id}: it was never acked")
    incarnation = max(past.incarnation, present.incarnation) + 1
    return RunResumed(
        incarnation=incarnation,
        policy_version=policy_version,
        position=position,
        contained_batch_ids=contained,
        consumed_group_ids=tuple(group_id for key in contained for group_id in past.batches[key].group_ids),
        fence=max(past.fence, present.fence),
        next_batch=max(past.next_batch, present.next_batch),
        deliveries={
            key: max(entry.num_deliveries, present.groups[key].num_deliveries if key in present.groups else 0)
            for key, entry in past.groups.items()
        },
        cursors=past.cursors | present.cursors,
        cuts=[*max(past.cuts, present.cuts, key=len), (incarnation, position)],
    )
