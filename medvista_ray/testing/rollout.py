"""A scripted env pool: commits tiny valid groups with scripted rewards, and dies on command. Runs no env."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from enum import StrEnum

from medvista_ray.errors import EngineDiedError, ShardDiedError
from medvista_ray.testing.records import make_group
from medvista_ray.types.delivery import CommitResult, GroupWork, Receipt
from medvista_ray.types.protocols import EngineSet, ReplayBuffer
from medvista_ray.types.trajectories import TrajectoryGroup

RewardScript = Callable[[GroupWork], Sequence[float | None]]  # None makes a broken member


class Death(StrEnum):
    """When a scripted shard dies."""

    BEFORE_COMMIT = "before_commit"
    AFTER_COMMIT = "after_commit"  # the group is stored, its receipt is lost


def different_rewards(work: GroupWork) -> Sequence[float]:
    """Reward every second member: a group that trains."""
    return [float(member % 2) for member in range(work.group_size)]


def equal_rewards(work: GroupWork) -> Sequence[float]:
    """Reward nobody: a group that is filtered."""
    return [0.0] * work.group_size


class ScriptedEnvPool:
    """Commits a group for every `run_group`, with the version that is sampled from at its start."""

    def __init__(
        self,
        buffer: ReplayBuffer,
        *,
        policy_version: Callable[[], int],
        rewards: RewardScript = different_rewards,
        delay_s: Callable[[GroupWork], float] | float = 0.0,
        num_slots: int = 64,
    ) -> None:
        self._buffer = buffer
        self._policy_version = policy_version
        self._rewards = rewards
        self._delay_s = delay_s
        self._num_slots = num_slots
        self._is_dead = False
        self.deaths: dict[str, list[Death]] = {}  # group id -> what its next executions do
        self.started: list[tuple[str, int]] = []  # (group id, attempt) in order
        self.cancelled: list[str] = []
        self.results: Counter[CommitResult] = Counter()
        self.engine_sets: list[EngineSet] = []
        self.num_running = 0
        self.max_running = 0
        self.num_recovered = 0
        self.is_closed = False

    @property
    def num_slots(self) -> int:
        """Groups that can run at once."""
        return self._num_slots

    async def run_group(self, work: GroupWork) -> Receipt:
        """Commit one scripted group; `ShardDiedError` when the script says so, until `recover`."""
        if self._is_dead:
            raise ShardDiedError("the scripted shard is dead")
        if not self.engine_sets:
            raise EngineDiedError("no engine was ever set")
        self.started.append((work.group_id, work.attempt))
        self.num_running += 1
        self.max_running = max(self.max_running, self.num_running)
        try:
            return await self._run(work)
        finally:
            self.num_running -= 1

    async def _run(self, work: GroupWork) -> Receipt:
        version = self._policy_version()
        await asyncio.sleep(self._delay_s(work) if callable(self._delay_s) else self._delay_s)
        planned = self.deaths.get(work.group_id, [])
        death = planned.pop(0) if planned else None
        if death is Death.BEFORE_COMMIT:
            self._die(work)
        group = make_group(
            work.group_id,
            rewards=self._rewards(work),
            attempt=work.attempt,
            incarnation=work.incarnation,
            policy_version=version,
            task=work.task,
        )
        result = await self._buffer.commit(group)
        self.results[result] += 1
        if death is Death.AFTER_COMMIT:
            self._die(work)
        return make_receipt(group, result)

    def _die(self, work: GroupWork) -> None:
        self._is_dead = True
        raise ShardDiedError(f"the scripted shard died while it ran {work.group_id}")

    async def cancel_group(self, group_id: str) -> None:
        """Note the call; the caller has stopped waiting, which stops the group."""
        self.cancelled.append(group_id)

    async def set_engines(self, engines: EngineSet) -> None:
        """Note the set."""
        self.engine_sets.append(engines)

    async def recover(self) -> int:
        """Bring the shard back; return how many came back."""
        recovered, self._is_dead = int(self._is_dead), False
        self.num_recovered += recovered
        return recovered

    async def close(self) -> None:
        """Stop."""
        self.is_closed = True


def make_receipt(group: TrajectoryGroup, result: CommitResult) -> Receipt:
    """Return what a driver learns of a group."""
    live = group.live
    return Receipt(
        group_id=group.group_id,
        attempt=group.attempt,
        result=result,
        family=group.task.family,
        rewards=tuple(member.reward for member in live),
        num_broken=len(group.trajectories) - len(live),
        num_tokens=sum(len(member.token_ids) for member in group.trajectories),
        num_action_tokens=sum(member.num_action_tokens for member in live),
        metrics={"rollout/turns/mean": 1.0},
    )
