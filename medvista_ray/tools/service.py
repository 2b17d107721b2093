"""A resident tool: one process that loads its weights once, and a thread that feeds it batches of calls.

    call() --> queue --> thread: up to max_batch calls, batch_wait_s after the first --> process: run_batch --> answers
                           ^ the process died, or one batch took as long as one call may: kill it, start another;
                             each call of that batch runs once more, alone, unless its deadline has passed

A call that is past its deadline is answered at once, whether it waits or runs, and so is one whose episode has no time
left, even while the process starts. That alone kills nobody: the budget of one episode must not end a process that
others use. Owns the process, which starts with the first call; knows tools by their target only, nothing of episodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import InvalidStateError
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from medvista_ray.errors import ConfigError
from medvista_ray.tools.base import ServiceTool
from medvista_ray.tools.execution import Execution, Request, failed
from medvista_ray.tools.frames import (
    Batch,
    BatchDone,
    Blob,
    ChannelClosedError,
    Missing,
    Need,
    find_bytes,
    make_call,
    read_done,
)
from medvista_ray.tools.pool import MAX_ATTEMPTS, WorkerProcess
from medvista_ray.tools.registry import load_tool, resolve_target
from medvista_ray.tools.service_queue import CallQueue, PendingCall, ServiceCounters, ServiceMetrics
from medvista_ray.types.tool_calls import ToolFailure

START_TIMEOUT_S = 120.0  # until the weights are loaded
_START_PAUSE_S = 5.0  # at least, after a start that failed: calls fail at once, instead of waiting for one start each
_MAX_START_PAUSE_S = 600.0
_LOOK_S = 0.02  # between two looks at the deadlines while a batch runs
_CLOSED = "the service of the tool is closed"
_DIED = "the service of the tool died"
_log = logging.getLogger(__name__)


class ServiceState(StrEnum):
    """What the process of a service does."""

    IDLE = "idle"  # not started yet
    STARTING = "starting"  # loads its weights
    READY = "ready"
    DEAD = "dead"  # the next call starts another
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceHealth:
    """How a service is."""

    state: ServiceState
    pid: int | None  # of its process, if there is one
    num_restarts: int
    is_loaded: bool  # the weights are in memory


class _ServiceProcess(WorkerProcess):
    """A worker that gets batches."""

    @property
    def is_running(self) -> bool:
        """Return whether the process lives."""
        return not self._channel.is_gone

    def send(self, frame: Batch | Blob | Missing, *, deadline: float) -> None:
        """Send a frame."""
        self._channel.send(frame, deadline=deadline)

    def receive(self, *, deadline: float, wait_s: float) -> Need | BatchDone | None:
        """Return the next frame; None when there is none after `wait_s`."""
        if not self._channel.wait_readable(wait_s):
            return None
        frame = self._channel.receive_in_pool(deadline=deadline)
        return frame if isinstance(frame, Need | BatchDone) else None


class ToolService:
    """Runs the calls of one service tool: `tools.runner.ToolExecutor`."""

    def __init__(
        self, spec: str, *, limit_s: float, num_threads: int = 1, start_timeout_s: float = START_TIMEOUT_S
    ) -> None:
        """Know the tool; start nothing yet.

        Args:
            spec: a built-in name, or `pkg.module:Class`.
            limit_s: the longest that any call may take; a batch that takes longer hangs.
            num_threads: of the numeric libraries in the process.
            start_timeout_s: until the process has loaded its weights.
        """
        tool = load_tool(spec)
        if not isinstance(tool, ServiceTool):
            raise ConfigError(f"env.tools: {spec!r} is no ServiceTool, it cannot be a service")
        self._target = resolve_target(spec)
        self._name, self._max_batch, self._batch_wait_s = tool.name, tool.max_batch, tool.batch_wait_s
        self._limit_s = limit_s if tool.deadline_s is None else min(limit_s, tool.deadline_s)
        self._start_timeout_s = start_timeout_s
        threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        self._environment = dict.fromkeys(threads, str(num_threads))
        self._queue = CallQueue()
        self._counters = ServiceCounters()
        self._lock = threading.Lock()  # of what follows
        self._thread: threading.Thread | None = None
        self._process: _ServiceProcess | None = None
        self._state = ServiceState.IDLE
        self._num_starts = 0
        self._num_failed_starts = 0  # in a row
        self._no_start_before_s = 0.0
        self._start_error = ""

    # --- calls
    async def call(self, request: Request) -> Execution:
        """Run a call without holding the event loop; every way it can end is in the result."""
        return (await self.call_timed(request))[0]

    async def call_timed(self, request: Request) -> tuple[Execution, float]:
        """Run a call as `call` does; return also the seconds that were left to it, its start not counted."""
        pending = self._submit(request)
        try:
            execution = await asyncio.wrap_future(pending.future)
        except asyncio.CancelledError:
            pending.is_abandoned = True
            raise
        return execution, pending.deadline_s - time.monotonic()

    def call_sync(self, request: Request) -> Execution:
        """Run a call; every way it can end is in the result."""
        return self._submit(request).future.result()

    def _submit(self, request: Request) -> PendingCall:
        now_s = time.monotonic()
        deadline_s = min(now_s + request.timeout_s, request.expires_s)
        pending = PendingCall(request=request, submitted_s=now_s, deadline_s=deadline_s)
        pending.future.set_running_or_notify_cancel()  # from here on only the service ends it
        with self._lock:
            if self._thread is None and self._state is not ServiceState.CLOSED:
                self._thread = threading.Thread(target=self._serve, name=f"service-{self._name}", daemon=True)
                self._thread.start()
        if not self._queue.put(pending):
            self._answer(pending, failed(ToolFailure.FAILED, _CLOSED))
        return pending

    # --- what others may ask
    def health(self) -> ServiceHealth:
        """Return how it is."""
        with self._lock:
            process, state = self._process, self._state
            if state is ServiceState.READY and (process is None or not process.is_running):
                state = ServiceState.DEAD
            return ServiceHealth(
                state=state,
                pid=process.pid if process is not None and process.is_running else None,
                num_restarts=max(0, self._num_starts - 1),
                is_loaded=state is ServiceState.READY,
            )

    def metrics(self) -> ServiceMetrics:
        """Return what it has done."""
        return self._counters.read(queue_depth=len(self._queue), num_restarts=max(0, self._num_starts - 1))

    def close(self) -> None:
        """Kill the process, also under a running batch; may be called again."""
        with self._lock:
            self._state = ServiceState.CLOSED
            process, thread = self._process, self._thread
        self._fail(self._queue.close(), _CLOSED)
        if process is not None:
            process.kill()
        if thread is not None:
            thread.join()

    # --- the thread
    def _serve(self) -> None:
        batch: list[PendingCall] = []
        try:
            while batch := self._queue.take(self._max_batch, wait_s=self._batch_wait_s):
                try:
                    self._serve_batch(batch)
                except Exception:  # noqa: BLE001  -- one bad batch must not end the calls of others
                    _log.exception("%s: a batch ended in an error of ours", self._name)
                    self._drop(batch)
        finally:  # whatever ends this thread, nobody may wait for an answer that will not come
            self._fail([*batch, *self._queue.close()], _DIED)

    def _serve_batch(self, batch: Sequence[PendingCall]) -> None:
        process = self._start_if_needed(batch)
        if process is None:
            self._fail(batch, _CLOSED if self._state is ServiceState.CLOSED else self._start_error)
            return
        self._answer_overdue(batch)
        waiting = [pending for pending in batch if not pending.is_over]
        if waiting and not self._run(process, waiting):
            self._lose(process, waiting)

    def _start_if_needed(self, batch: Sequence[PendingCall]) -> _ServiceProcess | None:
        """Return a process that has loaded its weights; None when it could not be started."""
        began_s = time.monotonic()
        with self._lock:
            if self._process is not None and self._process.is_running:
                return self._process
            if self._process is not None:
                self._process.kill()  # dead already: its socket and its children
                self._process = None
            if self._state is ServiceState.CLOSED or began_s < self._no_start_before_s:
                return None
            self._state = ServiceState.STARTING
        try:
            process = self._spawn(batch)
        except (TimeoutError, OSError, msgspec.DecodeError) as error:
            self._start_error = f"the service of {self._name} did not start: {error}"
            _log.warning("%s", self._start_error)
            if self._process is not None:
                self._process.kill()
            self._num_failed_starts += 1
            now_s = time.monotonic()  # never waits more often for starts that fail than it answers at once
            pause_s = max(_START_PAUSE_S, now_s - began_s) * 2 ** min(self._num_failed_starts - 1, 10)
            self._no_start_before_s = now_s + min(pause_s, _MAX_START_PAUSE_S)
            self._set_state(ServiceState.DEAD)
            return None
        self._num_failed_starts = 0
        self._set_state(ServiceState.READY)
        return process

    def _spawn(self, batch: Sequence[PendingCall]) -> _ServiceProcess:
        with self._lock:  # `close` sees the process, or this sees that it has been called
            if self._state is ServiceState.CLOSED:
                raise ChannelClosedError(_CLOSED)
            self._num_starts += 1
            process = self._process = _ServiceProcess(
                {self._name: self._target}, start_timeout_s=self._start_timeout_s, environment=self._environment
            )
        since_s, is_ready = time.monotonic(), False
        while not is_ready:
            is_ready = process.wait_ready(until_s=time.monotonic() + _LOOK_S)
            now_s = time.monotonic()
            for pending in batch:
                pending.pause_since(since_s, now_s)
            self._queue.pause_since(since_s, now_s)
            self._answer_overdue(batch)
            since_s = now_s
        return process

    def _drop(self, batch: Sequence[PendingCall]) -> None:
        """End a batch whose process is in a state that nobody knows."""
        self._fail(batch, _DIED)
        if self._process is not None:
            self._process.kill()
        self._set_state(ServiceState.DEAD)

    def _run(self, process: _ServiceProcess, batch: Sequence[PendingCall]) -> bool:
        """Run a batch and answer its calls; False when the process is lost: dead, or past every deadline."""
        # No call of the batch can have its deadline later than this.
        stop_s = time.monotonic() + self._limit_s
        calls = tuple(make_call(pending.request, attempt=pending.attempt) for pending in batch)
        self._counters.add_batch(len(batch))
        try:
            process.send(Batch(calls), deadline=stop_s)
            while (left_s := stop_s - time.monotonic()) > 0:
                frame = process.receive(deadline=stop_s, wait_s=min(_LOOK_S, left_s))
                self._answer_overdue(batch)
                if isinstance(frame, BatchDone):
                    for pending, done in zip(batch, frame.dones, strict=True):
                        self._answer(pending, read_done(done))
                    return True
                if isinstance(frame, Need):
                    process.send(find_bytes([pending.request for pending in batch], frame.digest), deadline=stop_s)
            _log.warning("%s: no end of a batch within %g s: its process is killed", self._name, self._limit_s)
        except TimeoutError:
            _log.warning("%s: no end of a frame within %g s: its process is killed", self._name, self._limit_s)
        except (OSError, TypeError, ValueError, OverflowError, msgspec.DecodeError) as error:
            _log.warning("%s: its process died: %s", self._name, error)
        return False

    def _lose(self, process: _ServiceProcess, batch: Sequence[PendingCall]) -> None:
        """End a process; run each of its calls once more if there is time."""
        process.kill()
        self._set_state(ServiceState.DEAD)
        self._answer_overdue(batch)
        again = []
        for pending in batch:
            pending.attempt += 1
            if pending.attempt < MAX_ATTEMPTS and not pending.is_over:
                again.append(pending)
            else:
                self._fail([pending], _DIED)
        if not self._queue.put_back(again):
            self._fail(again, _CLOSED)

    # --- answers
    def _answer_overdue(self, batch: Sequence[PendingCall]) -> None:
        now_s = time.monotonic()
        for pending in [*self._queue.take_overdue(now_s), *batch]:
            if pending.deadline_s <= now_s:
                self._answer(pending, failed(ToolFailure.TIMED_OUT, "no result in time"))

    def _fail(self, calls: Sequence[PendingCall], text: str) -> None:
        for pending in calls:
            self._answer(pending, failed(ToolFailure.FAILED, text))

    def _answer(self, pending: PendingCall, execution: Execution) -> None:
        if not pending.future.done():
            self._counters.add_answer(pending, execution)
            with contextlib.suppress(InvalidStateError):  # `close` has answered, from another thread
                pending.future.set_result(execution)

    def _set_state(self, state: ServiceState) -> None:
        with self._lock:
            if self._state is not ServiceState.CLOSED:
                self._state = state
