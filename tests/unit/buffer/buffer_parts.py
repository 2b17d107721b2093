"""Groups with known numbers, and a journal that kills the buffer's process around a write."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medvista_ray.buffer.journal import InMemoryJournal
from medvista_ray.types.messages import Task
from medvista_ray.types.samples import TrainingSample, make_training_sample
from medvista_ray.types.trajectories import StopReason, Trajectory, TrajectoryGroup, VersionSpan


def cut_round_robin(groups: Sequence[TrajectoryGroup], world_size: int) -> list[list[TrainingSample]]:
    samples = [make_training_sample(member, member.reward) for group in groups for member in group.live]
    return [samples[rank::world_size] for rank in range(world_size)]


def build_group(
    group_id: str,
    *,
    attempt: int = 0,
    incarnation: int = 0,
    rewards: Sequence[float] = (0.0, 1.0),
    version: int = 0,
    uid: int = 0,
    num_broken: int = 0,
    num_actions: int = 2,
) -> TrajectoryGroup:
    """Members with the tokens [uid, 0, action…], all sampled by one version; the last `num_broken` are broken."""
    length = 2 + num_actions
    members = tuple(
        Trajectory(
            group_id=group_id,
            member=index,
            task_id="task",
            token_ids=np.array([uid] + [0] * (length - 1), np.int32),
            loss_mask=np.arange(length) >= 2,
            logprobs=np.zeros(length, np.float32),
            version_spans=(VersionSpan(policy_version=version, start=2, end=length),) if num_actions else (),
            reward=reward,
            stop_reason=StopReason.BROKEN if index >= len(rewards) - num_broken else StopReason.ANSWERED,
        )
        for index, reward in enumerate(rewards)
    )
    task = Task(task_id="task", family="zoom", question="Which letter?", images=())
    return TrajectoryGroup(group_id=group_id, attempt=attempt, incarnation=incarnation, task=task, trajectories=members)


class KilledError(Exception):
    """The buffer's process died around a write."""


class LostReplyError(Exception):
    """The caller got no reply, and does not know whether its call took effect."""


class BrokenPromiseError(AssertionError):
    """A promise of the protocol was broken."""


class KillableJournal(InMemoryJournal):
    """Dies before or after the n-th next write when told so; keeps every record that survives the cuts in `log`."""

    def __init__(self, *, retain_ended: int = 64, base_every: int = 4096) -> None:
        super().__init__(retain_ended=retain_ended, base_every=base_every)
        self.armed: tuple[str, int] | None = None  # (before | after, writes to let pass)
        self.log: list = []

    def append(self, record, group=None):
        self._strike("before")
        number = super().append(record, group)
        self.log.append((number, record))
        self._strike("after")
        return number

    def cut(self, record, *, base, groups):
        self._strike("before")
        armed, self.armed = self.armed, None
        self.log = [(number, each) for number, each in self.log if number < record.position]
        number = super().cut(record, base=base, groups=groups)
        self.armed = armed
        self._strike("after")
        return number

    def _strike(self, when: str) -> None:
        if self.armed is None or self.armed[0] != when:
            return
        self.armed = (when, self.armed[1] - 1)
        if self.armed[1] < 0:
            self.armed = None
            raise KilledError
