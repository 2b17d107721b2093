"""The learner's ranks, each in its own process, led step by step: `types.protocols.LearnerGroup`.

    fetch (rank 0) -> load_batch (all) -> begin_batch (all) -> ack (rank 0) -> finish_batch (all)
                                              | refused, or nobody waits any more: drop_gradients (all)

Only lease ids and reports pass through here; ranks fetch their samples and images themselves. Calls run one after
another, each to its end even when its caller is cancelled: ranks that are out of step would wait for each other in a
collective. When one rank is gone all are ended, and `load_checkpoint` starts new ones.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import ray

from medvista_ray.cluster.actors import ActorHome
from medvista_ray.cluster.faults import answer_of
from medvista_ray.errors import LearnerDiedError
from medvista_ray.types.delivery import TrainReport, Wait
from medvista_ray.types.samples import TrainingSample
from medvista_ray.types.sampling import WeightUpdate

_log = logging.getLogger(__name__)
_LAST_WORDS_S = 5.0  # for the other ranks, once one has raised: most likely they raise the same

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RankHandle:
    """One rank: its actor and its life."""

    name: str
    actor: Any
    home: ActorHome
    life: Future[None]  # ends when the process does

    async def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method; `LearnerDiedError` when the process is gone."""
        call = getattr(self.actor, method).remote(*args, **kwargs)
        return await answer_of(call, who=self.name, died=LearnerDiedError)


class RemoteLearnerGroup:
    """Leads the ranks; `start` makes them."""

    def __init__(self, start_ranks: Callable[[], Awaitable[Sequence[RankHandle]]]) -> None:
        """Know how to start all ranks of a group."""
        self._start_ranks = start_ranks
        self._ranks: tuple[RankHandle, ...] = ()
        self._turn = asyncio.Lock()
        self._calls: set[asyncio.Task[Any]] = set()
        self._starting: asyncio.Future[Sequence[RankHandle]] | None = None
        self._is_closed = False

    @property
    def homes(self) -> tuple[ActorHome, ...]:
        """Return the processes of the ranks."""
        return tuple(rank.home for rank in self._ranks)

    async def start(self) -> None:
        """Start every rank; `LearnerDiedError` when the group is closed."""
        if self._is_closed:
            raise LearnerDiedError("the learner group is closed")
        self._starting = asyncio.ensure_future(self._start_ranks())
        try:
            self._ranks = tuple(await self._starting)
        finally:
            self._starting = None
        if self._is_closed:  # closed when it was too late to cancel the start
            self._end_ranks()
            raise LearnerDiedError("the learner group was closed while its ranks started")

    async def train_step(self, *, fence: int, train_from_version: int) -> TrainReport | Wait:
        """Lease a batch, train it, ack before the first update; `LeaseExpiredError` if it went back."""
        is_wanted = asyncio.Event()
        is_wanted.set()
        try:
            return await self._in_turn(self._train(is_wanted, fence=fence, train_from_version=train_from_version))
        except asyncio.CancelledError:
            is_wanted.clear()
            raise

    async def write_weights(self, policy_version: int) -> WeightUpdate:
        """Write the current weights where every engine can read them."""
        update = (await self._in_turn(self._all("write_weights", policy_version)))[0]
        assert isinstance(update, WeightUpdate), "rank 0 writes"
        return update

    async def compute_logprobs(self, samples: Sequence[TrainingSample]) -> list[np.ndarray]:
        """Return the learner's logprobs of each sample, float32 [L], 0.0 off the mask."""
        logprobs: list[np.ndarray] = (await self._in_turn(self._all("compute_logprobs", tuple(samples))))[0]
        return logprobs

    async def save_checkpoint(self, path: str) -> None:
        """Write model, optimizer and RNG into an existing folder, which every rank must see."""
        await self._in_turn(self._all("save_checkpoint", _absolute(path)))

    async def load_checkpoint(self, path: str) -> None:
        """Restore what `save_checkpoint` wrote; starts new ranks where the old ones have died."""
        await self._in_turn(self._load(_absolute(path)))

    async def export(self, path: str) -> None:
        """Write the policy as an ordinary Hugging Face folder."""
        await self._in_turn(self._all("export", _absolute(path)))

    async def close(self) -> None:
        """Stop every rank, also under a call or while ranks start; may be called again."""
        self._is_closed = True
        self._end_ranks()
        if self._starting is not None:
            self._starting.cancel()  # ends what it has started
        await asyncio.gather(*self._calls, return_exceptions=True)

    # --- one call
    async def _in_turn(self, work: Coroutine[Any, Any, R]) -> R:
        """Run a call after those before it, to its end."""

        async def run() -> R:
            async with self._turn:
                return await work

        task = asyncio.create_task(run(), name="learner group")
        self._calls.add(task)
        task.add_done_callback(self._on_done)
        return await asyncio.shield(task)

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._calls.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.debug("a call to the learner ended with %s: %s", type(error).__name__, error)

    async def _train(self, is_wanted: asyncio.Event, *, fence: int, train_from_version: int) -> TrainReport | Wait:
        if not is_wanted.is_set():
            raise asyncio.CancelledError("nobody waited for this train step any more when its turn came")
        lease = await self._first("fetch", fence=fence, train_from_version=train_from_version)
        if isinstance(lease, Wait):
            return lease
        await self._all("load_batch", lease.lease_id)
        is_acked = False
        try:
            await self._all("begin_batch")
            if not is_wanted.is_set():
                raise asyncio.CancelledError("nobody waits for this train step any more")
            await self._first("ack", lease.lease_id, fence=fence)
            is_acked = True
        finally:
            if not is_acked and self._ranks:
                await self._all("drop_gradients")
        report: TrainReport = (await self._all("finish_batch", lease))[0]
        return report

    async def _load(self, path: str) -> None:
        if not self._ranks or any(rank.life.done() for rank in self._ranks):
            self._end_ranks()
            _log.warning("the learner's ranks are started again")
            await self.start()
        await self._all("load_checkpoint", path)

    # --- ranks
    async def _first(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Ask rank 0 for something that touches no weights."""
        self._check_ranks()
        try:
            return await self._ranks[0].ask(method, *args, **kwargs)
        except LearnerDiedError:
            self._end_ranks()
            raise

    async def _all(self, method: str, *args: Any) -> list[Any]:
        """Ask every rank; when one fails the others get a moment to end too, then their processes are ended."""
        self._check_ranks()
        calls = [asyncio.ensure_future(rank.ask(method, *args)) for rank in self._ranks]
        _, pending = await asyncio.wait(calls, return_when=asyncio.FIRST_EXCEPTION)
        if pending and not any(isinstance(error, LearnerDiedError) for error in _errors(calls)):
            _, pending = await asyncio.wait(pending, timeout=_LAST_WORDS_S)
        errors = _errors(calls)
        errors.sort(key=lambda error: not isinstance(error, LearnerDiedError))
        if errors and (pending or isinstance(errors[0], LearnerDiedError)):
            self._end_ranks()
            await asyncio.wait(calls)
        if errors:
            raise errors[0]
        return [call.result() for call in calls]

    def _check_ranks(self) -> None:
        if not self._ranks:
            raise LearnerDiedError("no learner rank runs; load a checkpoint first")

    def _end_ranks(self) -> None:
        ranks, self._ranks = self._ranks, ()
        for rank in ranks:
            ray.kill(rank.actor)


def _errors(calls: Sequence[asyncio.Future[Any]]) -> list[BaseException]:
    return [error for call in calls if call.done() and (error := call.exception()) is not None]


def _absolute(path: str) -> str:
    """Resolve a path here: a rank may have another working directory."""
    return os.path.abspath(path)
