"""Dynamic batching around one synchronous engine: the async face that the rest of the system sees.

One task, `run`: consumes waiting requests and pending swaps; produces answers; waits for either; unblocked by
`generate`, `swap` and `close`. The engine is touched by one executor thread only, except that `stage` reads and
verifies weights in a second one while the first is sampling.

    generate --> waiting --(all of lock-step's episodes wait, or a short gathering time)--> batch --> executor thread
    swap ------> pending swap, goes first, between batches ------------------------------------------^
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

from medvista_ray.errors import EngineDiedError, MedVistaError
from medvista_ray.inference.transformers_engine import TransformersEngine
from medvista_ray.types.protocols import BlobStore
from medvista_ray.types.sampling import GenerateRequest, GenerateResult, WeightUpdate

_logger = logging.getLogger(__name__)
_MAX_LOOKS = 10  # gathering times that a batch waits while requests keep coming


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Waiting:
    request: GenerateRequest
    answer: asyncio.Future[GenerateResult]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Swap:
    policy_version: int
    answer: asyncio.Future[str]


def make_engine_executor(num_threads: int) -> ThreadPoolExecutor:
    """Return one thread whose torch operations use `num_threads` threads."""
    import torch

    return ThreadPoolExecutor(
        max_workers=1, thread_name_prefix="engine", initializer=torch.set_num_threads, initargs=(num_threads,)
    )


class BatchingEngine:
    """An `Engine` that runs waiting requests together. Requests wait while the engine is closed or swapping."""

    def __init__(
        self,
        engine: TransformersEngine,
        *,
        blobs: BlobStore,
        max_batch: int,
        lockstep: Callable[[], int] | None = None,
        executor: Executor | None = None,
        engine_id: str = "engine-0",
        gather_s: float = 0.003,
        lockstep_poll_s: float = 0.002,
    ) -> None:
        """Wrap an engine; the task starts with the first call.

        Args:
            engine: what samples.
            blobs: where encoded images are.
            max_batch: most requests of one generate batch.
            lockstep: number of live episodes; a round runs when that many requests wait.
            executor: exactly one thread; closed with this object. Made here when not given.
            engine_id: name in logs and routing.
            gather_s: without lock-step, a batch runs when no request has come for this long.
            lockstep_poll_s: how often lock-step looks again when an episode may have ended without a request.
        """
        self.engine_id = engine_id
        self._engine = engine
        self._blobs = blobs
        self._max_batch = max_batch
        self._lockstep = lockstep
        self._executor = executor if executor is not None else make_engine_executor(1)
        self._stager = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"{engine_id}-stage")
        self._gather_s = gather_s
        self._lockstep_poll_s = lockstep_poll_s
        self._waiting: list[_Waiting] = []
        self._swaps: list[_Swap] = []
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._death: str | None = None

    # --- what others see
    @property
    def is_dead(self) -> bool:
        """Return whether every further call answers `EngineDiedError`."""
        return self._death is not None

    @property
    def num_waiting(self) -> int:
        """Count the requests that no batch has taken yet."""
        return len(self._waiting)

    @property
    def policy_version(self) -> int | None:
        """Return the version that is loaded; None while closed."""
        return self._engine.policy_version

    async def wait_started(self) -> None:
        """Return: it is there as soon as it is made."""

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        """Sample one action; waits while closed or swapping; `EngineDiedError` when the engine is gone."""
        self._check_alive()
        answer: asyncio.Future[GenerateResult] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(request=request, answer=answer))
        self._wake()
        return await answer

    async def stage(self, update: WeightUpdate) -> None:
        """Read and verify weights while serving; `WeightsRefusedError` names what does not fit."""
        self._check_alive()
        await asyncio.get_running_loop().run_in_executor(self._stager, self._engine.stage, update)

    async def swap(self, policy_version: int) -> str:
        """Load the staged weights between two batches; return the checksum of what is loaded."""
        self._check_alive()
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._swaps.append(_Swap(policy_version=policy_version, answer=answer))
        self._wake()
        return await answer

    async def close(self) -> None:
        """Stop the task, fail what waits, end the threads; may be called again."""
        self._die(f"{self.engine_id} is closed")
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        self._stager.shutdown(wait=False, cancel_futures=True)
        self._executor.shutdown(wait=False, cancel_futures=True)

    # --- the task
    def _wake(self) -> None:
        self._changed.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"{self.engine_id}-batches")

    async def _run(self) -> None:
        try:
            while True:
                await self._until_work()
                if self._swaps:
                    await self._run_swap()
                else:
                    await self._run_round()
        except asyncio.CancelledError:
            self._die(f"{self.engine_id} was stopped")
            raise
        except Exception as error:  # whatever broke, every caller must learn that this engine is gone
            _logger.exception("%s died", self.engine_id)
            self._die(f"{self.engine_id} died: {type(error).__name__}: {error}")

    async def _until_work(self) -> None:
        """Return when a swap is pending or a batch may run."""
        seen, looks = 0, 0
        while not self._swaps:
            self._changed.clear()
            self._waiting = [entry for entry in self._waiting if not entry.answer.done()]
            if not self._waiting or self._engine.policy_version is None:
                seen, looks = 0, 0
                await self._changed.wait()
            elif self._lockstep is not None:
                if len(self._waiting) >= self._lockstep():
                    return
                await self._wait_briefly(self._lockstep_poll_s)
            elif len(self._waiting) in (seen, self._max_batch) or looks == _MAX_LOOKS:
                return
            else:
                seen, looks = len(self._waiting), looks + 1
                await asyncio.sleep(self._gather_s)

    async def _wait_briefly(self, timeout_s: float) -> None:
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except TimeoutError:
            return

    async def _run_swap(self) -> None:
        """Run the oldest pending swap; one that breaks the engine stays pending, for whoever ends this task to fail."""
        swap = self._swaps[0]
        loop = asyncio.get_running_loop()
        try:
            checksum = await loop.run_in_executor(self._executor, self._engine.swap, swap.policy_version)
        except MedVistaError as error:
            if not swap.answer.done():
                swap.answer.set_exception(error)
        else:
            if not swap.answer.done():
                swap.answer.set_result(checksum)
        self._swaps.pop(0)

    async def _run_round(self) -> None:
        """Run one batch; in lock-step, everything that waits, in batches of a fixed order."""
        ordered = sorted(self._waiting, key=lambda entry: entry.request.sort_key)
        taken = ordered if self._lockstep is not None else ordered[: self._max_batch]
        self._waiting = ordered[len(taken) :]
        try:
            for start in range(0, len(taken), self._max_batch):
                if self._swaps:
                    await self._run_swap()
                await self._run_batch(taken[start : start + self._max_batch])
        finally:
            # a batch that did not run goes back, so that whoever ends this task can fail its requests
            self._waiting = [entry for entry in taken if not entry.answer.done()] + self._waiting

    async def _run_batch(self, batch: Sequence[_Waiting]) -> None:
        batch = [entry for entry in batch if not entry.answer.done()]
        images, batch = await self._fetch_images(batch)
        if not batch:
            return
        outcomes = await asyncio.get_running_loop().run_in_executor(
            self._executor, self._engine.try_generate_batch, [entry.request for entry in batch], images
        )
        for entry, outcome in zip(batch, outcomes, strict=True):
            if entry.answer.done():
                continue
            if isinstance(outcome, MedVistaError):
                entry.answer.set_exception(outcome)
            else:
                entry.answer.set_result(outcome)

    async def _fetch_images(self, batch: Sequence[_Waiting]) -> tuple[dict[str, bytes], list[_Waiting]]:
        """Return the bytes that the engine lacks, and the requests whose images are all there; fail the others."""
        digests = self._engine.missing_images([entry.request for entry in batch])
        try:
            found = await self._blobs.get_many(digests) if digests else []
            return dict(zip(digests, found, strict=True)), list(batch)
        except MedVistaError as error:
            _logger.warning("%s: images of a batch are not there (%s); looking one by one", self.engine_id, error)
        images: dict[str, bytes] = {}
        missing: dict[str, MedVistaError] = {}
        for digest in digests:
            try:
                images[digest] = (await self._blobs.get_many((digest,)))[0]
            except MedVistaError as error:
                missing[digest] = error
        complete: list[_Waiting] = []
        for entry in batch:
            lost = [span.digest for span in entry.request.image_spans if span.digest in missing]
            if not lost:
                complete.append(entry)
            elif not entry.answer.done():
                entry.answer.set_exception(missing[lost[0]])
        return images, complete

    # --- death
    def _check_alive(self) -> None:
        if self._death is not None:
            raise EngineDiedError(self._death)

    def _die(self, why: str) -> None:
        if self._death is None:
            self._death = why
        waiting: list[_Waiting | _Swap] = [*self._waiting, *self._swaps]
        self._waiting, self._swaps = [], []
        for entry in waiting:
            if not entry.answer.done():
                entry.answer.set_exception(EngineDiedError(self._death))
