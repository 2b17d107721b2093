"""The protocols between layers. The driver's loops see EnvPool, Engines, ReplayBuffer, LearnerGroup and BlobStore."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from medvista_ray.types.delivery import (
    Admitted,
    Attached,
    BufferStatus,
    CommitResult,
    ConsumerSettings,
    GroupWork,
    Lease,
    Receipt,
    TrainReport,
    Wait,
)
from medvista_ray.types.messages import Reference, Task
from medvista_ray.types.samples import BatchShard, TrainingSample
from medvista_ray.types.sampling import GenerateRequest, GenerateResult, WeightUpdate
from medvista_ray.types.trajectories import TrajectoryGroup


class BlobStore(Protocol):
    """Owns every encoded image and source volume, by digest."""

    async def put_if_absent(self, digest: str, data: bytes) -> None:
        """Store bytes under their SHA-256; putting an existing blob renews its age."""

    async def get_many(self, digests: Sequence[str]) -> list[bytes]:
        """Return the bytes of each digest; `BlobMissingError` names the first that is not there."""


class PolicyClient(Protocol):
    """Samples actions from the policy."""

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        """Sample one action; `EngineDiedError` when the engine is gone."""


class Engine(PolicyClient, Protocol):
    """One inference engine."""

    engine_id: str

    async def stage(self, update: WeightUpdate) -> None:
        """Read and verify weights while serving; `WeightsRefusedError` names what does not fit."""

    async def swap(self, policy_version: int) -> str:
        """Load the staged weights between generate calls; return the checksum of what is loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSet:
    """The engines that an episode may be routed to; a higher epoch replaces a lower one."""

    epoch: int
    engines: tuple[Any, ...]  # Engine handles


class Engines(Protocol):
    """All engines of a run, as the driver sees them."""

    def engine_set(self) -> EngineSet:
        """Return the engines that serve, with the epoch of this set."""

    async def stage(self, update: WeightUpdate) -> None:
        """Stage on every engine; those that refuse what another accepts are quarantined; raise if all refuse."""

    async def swap(self, policy_version: int) -> None:
        """Swap on every engine; one that fails is quarantined."""

    async def quarantine(self, engine_id: str, why: str) -> None:
        """Take an engine out of the set until `recover` makes another; one that has left is left alone."""

    async def recover(self) -> int:
        """Recreate dead and quarantined engines on the newest accepted weights; return how many."""

    async def close(self) -> None:
        """Stop every engine."""


class EnvPool(Protocol):
    """Env shards that run whole groups."""

    @property
    def num_slots(self) -> int:
        """Groups that can run at once."""

    async def run_group(self, work: GroupWork) -> Receipt:
        """Run one group and commit it to the buffer; `ShardDiedError` when the shard is gone."""

    async def cancel_group(self, group_id: str) -> None:
        """Stop a running group; nothing is committed."""

    async def set_engines(self, engines: EngineSet) -> None:
        """Tell every shard which engines serve."""

    async def recover(self) -> int:
        """Recreate dead shards; return how many."""

    async def close(self) -> None:
        """Stop every shard."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JournalPage:
    """Committed groups and end states in order of the journal."""

    entries: tuple[tuple[int, TrajectoryGroup | tuple[str, str]], ...]  # (record number, group | (group_id, end state))
    cursor: tuple[int, int]  # (incarnation, record number) to read on from
    rewound: bool = False
    num_taken: int = 0  # committed groups between the cursor and this page's that retention has taken


class ReplayBuffer(Protocol):
    """Ready groups and their leases; the async face of `buffer.ReplayBuffer`."""

    async def admit(self, group_id: str, *, incarnation: int) -> Admitted | Wait:
        """Give a group its slot, or say why not."""

    async def attempt(self, group_id: str, *, replaces: int, incarnation: int) -> Admitted | None:
        """Execute a running group again after a dead shard; None when it has ended."""

    async def cancel(self, group_id: str, *, incarnation: int) -> None:
        """End a running group; its task is issued again."""

    async def fail(self, group_id: str, *, reason: str, incarnation: int) -> None:
        """End a running group for good."""

    async def end_tasks(self, *, incarnation: int) -> None:
        """Say that no task is left to admit."""

    async def to_issue_again(self) -> list[str]:
        """Return the group ids whose task waits to be issued again."""

    async def running(self) -> list[Admitted]:
        """Return the groups in execution, with their newest attempt, in order of admission."""

    async def commit(self, group: TrajectoryGroup) -> CommitResult:
        """Store a finished group."""

    async def attach(self, settings: ConsumerSettings, *, incarnation: int | None = None) -> Attached:
        """Become the pacing consumer."""

    async def fetch(self, *, fence: int, train_from_version: int) -> Lease | Wait:
        """Seal the next batch, or say why not."""

    async def shard(self, lease_id: str, *, rank: int) -> BatchShard:
        """Return the part of a leased batch that one rank trains."""

    async def ack(self, lease_id: str, *, fence: int) -> None:
        """Claim a batch for the next version; `LeaseExpiredError` if it has gone back."""

    async def nack(self, lease_id: str, *, fence: int) -> None:
        """Give a batch back."""

    async def extend(self, lease_id: str, *, fence: int) -> float:
        """Renew a lease; return its new deadline."""

    async def publish(self, version: int, *, batch_id: str, fence: int) -> None:
        """Accept a version: its batch is consumed."""

    async def expire(self) -> list[str]:
        """Take overdue batches back; return their group ids."""

    async def status(self) -> BufferStatus:
        """Return the counters of the ledger."""

    async def snapshot(self) -> bytes:
        """Return the ledger and the ready groups for a checkpoint."""

    async def cut(self, snapshot: bytes, *, contained_batch_ids: Sequence[str], policy_version: int) -> int:
        """Return to a snapshot under a new incarnation, which is returned."""

    async def read(self, *, after: tuple[int, int], limit: int) -> JournalPage:
        """Walk committed groups and end states in order."""


class LearnerGroup(Protocol):
    """The built-in learner: one or more ranks that train one batch at a time."""

    async def train_step(self, *, fence: int, train_from_version: int) -> TrainReport | Wait:
        """Lease a batch, train it, ack before the first update; `LeaseExpiredError` if it went back."""

    async def write_weights(self, policy_version: int) -> WeightUpdate:
        """Write the current weights where every engine can read them."""

    async def compute_logprobs(self, samples: Sequence[TrainingSample]) -> list[np.ndarray]:
        """Return the learner's logprobs of each sample, float32 [L], 0.0 off the mask."""

    async def save_checkpoint(self, path: str) -> None:
        """Write model, optimizer and RNG into an existing folder."""

    async def load_checkpoint(self, path: str) -> None:
        """Restore what `save_checkpoint` wrote."""

    async def export(self, path: str) -> None:
        """Write the policy as an ordinary Hugging Face folder."""

    async def close(self) -> None:
        """Stop every rank."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaskRecord:
    """One task with what only its owner has: the reference, and the bytes of its source images."""

    task: Task
    reference: Reference
    blobs: Mapping[str, bytes]  # digest -> encoded source image


class TaskSource(Protocol):
    """A finite, seeded sequence of tasks."""

    def __len__(self) -> int:
        """Count the tasks."""

    def __getitem__(self, index: int) -> TaskRecord:
        """Make the task of an index; the same every time."""


class BlobCache(Protocol):
    """Synchronous bytes that an env and its tools use; the rollout moves new ones to the BlobStore."""

    def put(self, data: bytes) -> str:
        """Keep bytes; return their digest."""

    def get(self, digest: str) -> bytes:
        """Return bytes; `BlobMissingError` if they are not here."""

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Return the digests that are not here."""
