"""Warm worker processes for every tool that is not ours: spawned, killed at the deadline, replaced at once.

    call() -- executor thread --> a free worker -- socket --> tool
                                  ^ past the deadline, or dead: kill its process group, start another in its place

Owns processes and their sockets; knows tools by name only, nothing of episodes. Neither a worker's start-up nor the
wait for a free one counts towards a tool's deadline, but the end of the episode's budget ends every wait. A tool that
keeps workers from starting is left out of those that follow, so that the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

import msgspec

from medvista_ray.tools.execution import Execution, Request, failed
from medvista_ray.tools.frames import (
    Channel,
    ChannelClosedError,
    Done,
    Making,
    Need,
    Ready,
    Setup,
    find_bytes,
    make_call,
    read_done,
)
from medvista_ray.types.tool_calls import ToolFailure

START_TIMEOUT_S = 60.0
_READ_S = 1.0  # for a short frame that has begun to arrive
MAX_ATTEMPTS = 2  # a call is tried once more when its worker dies under it; never after a deadline
_CLOSED = "the tool pool is closed"
_NO_BUDGET = "the time of the episode was over before the tool could run"
_log = logging.getLogger(__name__)


class WorkerProcess:
    """One worker: its process and its channel."""

    def __init__(
        self,
        targets: Mapping[str, str],
        *,
        start_timeout_s: float = START_TIMEOUT_S,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Start a process that makes tools.

        Args:
            targets: `pkg.module:Class` of each tool, by the name that calls use.
            start_timeout_s: until all of them are made.
            environment: adds to that of this process.
        """
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        self._environment = environment
        with theirs:
            self._process = self._spawn(theirs.fileno())
        self.is_ready = False  # the tools are made
        self.making: str | None = None  # the tool that it makes now, or made last
        self._start_deadline = time.monotonic() + start_timeout_s
        with contextlib.suppress(ChannelClosedError):  # dead already: `wait_ready` will find out
            self._channel.send(Setup(dict(targets)))

    def _spawn(self, descriptor: int) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                [sys.executable, "-m", "medvista_ray.tools.worker", str(descriptor)],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a tool prints is not a frame
                pass_fds=(descriptor,),
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                    **self._environment,
                },
                start_new_session=True,  # a Ctrl-C is ours to handle; one kill ends what the tool has started too
            )
        except OSError:
            self._channel.close()
            raise

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._process.pid

    def wait_ready(self, *, until_s: float = math.inf) -> bool:
        """Wait until the tools are made, or until a time of `time.monotonic`; return whether they are.

        Raises:
            TimeoutError: they were not made within the time to start.
            ChannelClosedError: the process has died.
        """
        while not self.is_ready:
            stop_s = min(self._start_deadline, until_s)
            if not self._channel.wait_readable(stop_s - time.monotonic()):
                if stop_s < self._start_deadline:
                    return False
                raise TimeoutError("the time to start is over")
            # What came in time counts, however late it is read: a worker may be free for long before its first call.
            frame = self._channel.receive_in_pool(deadline=max(self._start_deadline, time.monotonic() + _READ_S))
            if isinstance(frame, Making):
                self.making = frame.tool
            self.is_ready = isinstance(frame, Ready)
        return True

    def exchange(self, request: Request, *, attempt: int) -> Done:
        """Send a call, answer its wishes for images, return its end."""
        deadline = min(time.monotonic() + request.timeout_s, request.expires_s)
        self._channel.send(make_call(request, attempt=attempt), deadline=deadline)
        while True:
            frame = self._channel.receive_in_pool(deadline=deadline)
            if isinstance(frame, Done):
                return frame
            if isinstance(frame, Need):
                self._channel.send(find_bytes([request], frame.digest), deadline=deadline)

    def kill(self) -> None:
        """End the process and all that it started; may be called again."""
        if self._process.returncode is None:  # not reaped yet: the id is still ours
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._channel.close()


class ToolPool:
    """A fixed number of warm workers, each with every pooled tool."""

    def __init__(
        self, targets: Mapping[str, str], *, num_workers: int, start_timeout_s: float = START_TIMEOUT_S
    ) -> None:
        """Start the workers; `targets` is `pkg.module:Class` of each tool, by the name that calls use."""
        self._targets = dict(targets)
        self._start_timeout_s = start_timeout_s
        self._failed_starts: Counter[str] = Counter()
        self._unusable: dict[str, Execution] = {}
        self._condition = threading.Condition()
        self._is_closed = False
        self._busy: set[WorkerProcess] = set()
        self._free: list[WorkerProcess] = []
        self._executor = ThreadPoolExecutor(max_workers=num_workers, thread_name_prefix="tool-pool")
        try:
            for _ in range(num_workers):
                self._free.append(self._make_worker())
        except OSError:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """Return the process ids of the workers."""
        with self._condition:
            return sorted(worker.pid for worker in (*self._free, *self._busy))

    async def call(self, request: Request) -> Execution:
        """Run a call without holding the event loop."""
        try:
            running = self._executor.submit(self.call_sync, request)
        except RuntimeError:  # closed
            return failed(ToolFailure.FAILED, _CLOSED)
        left_s = None if request.expires_s == math.inf else max(0.0, request.expires_s - time.monotonic())
        try:
            return await asyncio.wait_for(asyncio.wrap_future(running), left_s)
        except TimeoutError:  # it waits for a thread still; a call that runs ends by itself at the same time
            return _no_budget()

    def call_sync(self, request: Request) -> Execution:
        """Run a call; every way it can end is in the result."""
        execution = failed(ToolFailure.FAILED, _CLOSED)
        for attempt in range(MAX_ATTEMPTS):
            worker = self._take_ready(request)
            if isinstance(worker, Execution):
                return worker
            execution, may_retry = self._try_call(worker, request, attempt=attempt)
            if not may_retry:
                break
        return execution

    def close(self) -> None:
        """Kill every worker, also under a running call; may be called again."""
        with self._condition:
            self._is_closed = True
            workers = [*self._free, *self._busy]
            self._free.clear()
            self._condition.notify_all()
        for worker in workers:
            worker.kill()
        self._executor.shutdown(wait=True)  # what waits there finds the pool closed

    def _take_ready(self, request: Request) -> WorkerProcess | Execution:
        """Return a worker that has made its tools, or how the call ends without one."""
        while True:
            if (unusable := self._unusable.get(request.tool)) is not None:
                return unusable
            worker = self._take(until_s=request.expires_s)
            if worker is None:
                return failed(ToolFailure.FAILED, _CLOSED) if self._is_closed else _no_budget()
            is_ready = is_alive = False
            try:
                is_ready = is_alive = worker.wait_ready(until_s=request.expires_s)
                if is_ready:
                    return worker
                is_alive = True  # others may wait for it
                return _no_budget()
            except (TimeoutError, OSError, msgspec.DecodeError) as error:
                _log.warning("tool worker %d did not start: %s", worker.pid, error)
                if not self._blame(worker, error):
                    return failed(ToolFailure.FAILED, f"the worker of the tool did not start: {error}")
            finally:
                if not is_ready:
                    self._give_back(worker, is_alive=is_alive)

    def _blame(self, worker: WorkerProcess, error: Exception) -> bool:
        """Count a start that failed against the tool that was being made; return whether there was one."""
        if worker.making is None or self._is_closed:
            return False
        with self._condition:
            # A death may be an accident, and gets a second try. Nobody waits twice for a tool that hangs.
            self._failed_starts[worker.making] += MAX_ATTEMPTS if isinstance(error, TimeoutError) else 1
            if self._failed_starts[worker.making] >= MAX_ATTEMPTS:
                _log.error("tool %s keeps its workers from starting: every call of it fails from now on", worker.making)
                text = f"{worker.making} keeps its worker from starting: {error}"
                self._unusable[worker.making] = failed(ToolFailure.FAILED, text)
        return True

    def _try_call(self, worker: WorkerProcess, request: Request, *, attempt: int) -> tuple[Execution, bool]:
        """Run a call on one worker and give it back; return what it gave, and whether another may try."""
        is_alive = False
        try:
            done = worker.exchange(request, attempt=attempt)
            is_alive = True
        except TimeoutError:
            _log.warning("tool %s is past its deadline: worker %d is killed", request.tool, worker.pid)
            limit = (
                f"within {request.timeout_s:g} s" if not request.is_expired else "before the episode's time was over"
            )
            return failed(ToolFailure.TIMED_OUT, f"no result {limit}"), False
        except (OSError, msgspec.DecodeError):
            _log.warning("worker %d died under tool %s", worker.pid, request.tool)
            return failed(ToolFailure.FAILED, "the worker of the tool died"), True
        except (TypeError, ValueError, OverflowError) as error:  # of the encoder
            return failed(ToolFailure.FAILED, f"the call cannot be sent: {error}"), False
        finally:
            self._give_back(worker, is_alive=is_alive)
        return read_done(done), False

    def _make_worker(self) -> WorkerProcess:
        targets = {name: target for name, target in self._targets.items() if name not in self._unusable}
        return WorkerProcess(targets, start_timeout_s=self._start_timeout_s)

    def _take(self, *, until_s: float) -> WorkerProcess | None:
        """Wait for a free worker; None when the pool is closed, or when the time comes first."""
        with self._condition:
            while not self._free and not self._is_closed:
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    return None
                self._condition.wait(None if left_s == math.inf else left_s)
            if self._is_closed or time.monotonic() >= until_s:
                self._condition.notify()  # a worker that this call was told of is another's
                return None
            worker = self._free.pop()
            self._busy.add(worker)
            return worker

    def _give_back(self, worker: WorkerProcess, *, is_alive: bool) -> None:
        """Make room for the next call, whatever this one did; start another worker in the place of a dead one."""
        if not is_alive:
            worker.kill()
        with self._condition:
            self._busy.discard(worker)
            if self._is_closed:
                return
            try:
                if is_alive and worker.is_ready:
                    self._free.append(worker)  # taken next
                else:
                    self._free.insert(0, worker if is_alive else self._make_worker())  # taken last: it has to start
            except OSError:
                _log.exception("no worker can be started in the place of another: the tool pool is closed")
                self._is_closed = True  # nobody may wait for a worker that will never come
                self._condition.notify_all()
                return
            self._condition.notify()


def _no_budget() -> Execution:
    return failed(ToolFailure.TIMED_OUT, _NO_BUDGET)
