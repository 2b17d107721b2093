"""A scripted learner: leases, acks and counts like a real one, and trains nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medvista_ray.errors import LearnerDiedError
from medvista_ray.types.delivery import TrainReport, Wait
from medvista_ray.types.protocols import ReplayBuffer
from medvista_ray.types.samples import TrainingSample
from medvista_ray.types.sampling import WeightUpdate


class ScriptedLearner:
    """Its weights are the list of batches that it was trained on."""

    def __init__(self, buffer: ReplayBuffer, *, world_size: int = 1, step_s: float = 0.0) -> None:
        self._buffer = buffer
        self._world_size = world_size
        self.step_s = step_s
        self._is_dead = False
        self.history: list[list[str]] = []  # group ids of every train step in the weights
        self.num_steps = 0  # train steps, those of lost weights among them
        self.die_at: set[int] = set()  # num_steps at which it dies, after the ack
        self.expire_at: set[int] = set()  # num_steps at which the batch goes back before the ack
        self.num_saves = 0
        self.die_in_save: set[int] = set()  # num_saves at which it dies, with half a file written
        self.max_abs_logprob_diffs: dict[int, float] = {}  # train_from_version -> measured difference, nats
        self.written: list[int] = []  # versions
        self.is_closed = False

    async def train_step(self, *, fence: int, train_from_version: int) -> TrainReport | Wait:
        """Lease, fetch every shard, ack, remember; `LearnerDiedError` when the script says so, until it is loaded."""
        self._check_alive()
        lease = await self._buffer.fetch(fence=fence, train_from_version=train_from_version)
        if isinstance(lease, Wait):
            return lease
        shards = [await self._buffer.shard(lease.lease_id, rank=rank) for rank in range(self._world_size)]
        await asyncio.sleep(self.step_s)
        self.num_steps += 1
        if self.num_steps in self.expire_at:
            await self._buffer.nack(lease.lease_id, fence=fence)
        await self._buffer.ack(lease.lease_id, fence=fence)
        if self.num_steps in self.die_at:
            self._die()
        self.history.append(list(lease.group_ids))
        rewards = [sample.reward for shard in shards for sample in shard.samples]
        return TrainReport(
            lease_id=lease.lease_id,
            train_from_version=lease.train_from_version,
            group_ids=lease.group_ids,
            staleness=lease.staleness,
            metrics={"learner/reward/mean": float(np.mean(rewards))},
            max_abs_logprob_diff=self.max_abs_logprob_diffs.get(lease.train_from_version),
        )

    def _check_alive(self) -> None:
        if self._is_dead:
            raise LearnerDiedError("the scripted learner is dead")

    def _die(self) -> None:
        self._is_dead = True
        raise LearnerDiedError(f"the scripted learner died in train step {self.num_steps}")

    async def write_weights(self, policy_version: int) -> WeightUpdate:
        """Return an update that names no real file."""
        self._check_alive()
        self.written.append(policy_version)
        return WeightUpdate(policy_version=policy_version, path=f"weights-{policy_version}", digest="0" * 64)

    async def compute_logprobs(self, samples: Sequence[TrainingSample]) -> list[np.ndarray]:
        """Agree with the engine."""
        return [sample.logprobs for sample in samples]

    async def save_checkpoint(self, path: str) -> None:
        """Write the history into an existing folder; dies half way where `die_in_save` says so."""
        self._check_alive()
        self.num_saves += 1
        if self.num_saves in self.die_in_save:
            _write(path, "history.json", '{"half')
            self._die()
        _write(path, "history.json", json.dumps(self.history))

    async def load_checkpoint(self, path: str) -> None:
        """Read the history back; a dead learner lives again."""
        self.history = json.loads(_read(path, "history.json"))
        self._is_dead = False

    async def export(self, path: str) -> None:
        """Write the history as if it were a policy."""
        _write(path, "policy.json", json.dumps(self.history))

    async def close(self) -> None:
        """Stop."""
        self.is_closed = True


def _write(folder: str, name: str, text: str) -> None:
    Path(folder, name).write_text(text)


def _read(folder: str, name: str) -> str:
    return Path(folder, name).read_text()
