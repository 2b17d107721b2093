"""Fixtures: groups with known numbers, a journal that kills the buffer around a write, the state machine's world."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from buffer_learner import LearnerWorld
from buffer_parts import BrokenPromiseError, KillableJournal, KilledError, build_group, cut_round_robin

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
