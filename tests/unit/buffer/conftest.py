"""Fixtures: groups with known numbers, a journal that kills the buffer around a write, the state machine's world."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from buffer_learner import LearnerWorld
from buffer_parts import BrokenPromiseError, KillableJournal, KilledError, build_group, cut_round_robin

from medvista_ray.buffer.replay_buffer import ReplayBuffer
from medvista_ray.config.schema import BufferConfig
from medvista_ray.types.delivery import Admitted, CommitResult, ConsumerSettings, Lease
from medvista_ray.types.trajectories import TrajectoryGroup


@pytest.fixture
def make_group() -> Callable[..., TrajectoryGroup]:
    return build_group


@pytest.fixture
def make_world() -> type[LearnerWorld]:
    return LearnerWorld


@pytest.fixture
def make_journal() -> type[KillableJournal]:
    return KillableJournal


@pytest.fixture
def killed() -> type[KilledError]:
    return KilledError


@pytest.fixture
def broken_promise() -> type[BrokenPromiseError]:
    return BrokenPromiseError


@pytest.fixture
def cut_batch():
    return cut_round_robin


@pytest.fixture
def make_buffer() -> Callable[..., ReplayBuffer]:
    """A buffer with a consumer of the configured settings; two groups a step and no staleness limit in the way."""

    def make(*, journal=None, attach=True, world_size=1, fixed_weights=False, **fields) -> ReplayBuffer:
        config = BufferConfig(**({"groups_per_step": 2, "ack_wait_s": 10.0} | fields))
        buffer = ReplayBuffer(config, cut_batch=cut_round_robin, journal=journal)
        if attach:
            buffer.attach(
                ConsumerSettings(
                    groups_per_step=config.groups_per_step,
                    max_staleness=config.max_staleness,
                    world_size=world_size,
                    fixed_weights=fixed_weights,
                )
            )
        return buffer

    return make


@pytest.fixture
def fill() -> Callable[..., None]:
    """Admit and commit new tasks, whose groups were sampled by one version."""

    def fill(buffer: ReplayBuffer, *tasks: int, version: int = 0, **fields) -> None:
        incarnation = buffer.status().incarnation
        for task in tasks:
            admitted = buffer.admit(f"0/{task}/0", incarnation=incarnation)
            assert isinstance(admitted, Admitted), admitted
            group = build_group(
                admitted.group_id, attempt=admitted.attempt, incarnation=incarnation, version=version, **fields
            )
            assert buffer.commit(group) is CommitResult.ACCEPTED

    return fill


@pytest.fixture
def lease_and_ack() -> Callable[..., str]:
    """Take a batch to its ack; return its id."""

    def take(buffer: ReplayBuffer, train_from_version: int, *, fence: int = 1, now_s: float = 0.0) -> str:
        lease = buffer.fetch(fence=fence, train_from_version=train_from_version, now_s=now_s)
        assert isinstance(lease, Lease), lease
        buffer.shard(lease.lease_id, rank=0)
        buffer.ack(lease.lease_id, fence=fence)
        return lease.lease_id

    return take
