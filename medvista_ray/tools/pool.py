"""Warm worker processes for every tool that is not ours: spawned, killed at the deadline, replaced at once.

    call() -- executor thread --> a free worker -- socket --> tool
                                  ^ past the deadline, or dead: kill its process group, start another in its place

Owns processes and their sockets; knows tools by name only, nothing of episodes. A worker's start-up does not count
towards a deadline, nor does the wait for a free worker, which ends when the calls before it end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

import msgspec

from medvista_ray.tools.execution import Execution, Request, failed
from medvista_ray.tools.frames import (
    Blob,
    Call,
    Channel,
    ChannelClosedError,
    Done,
    Need,
    Ready,
    Setup,
    make_call,
    read_done,
)
from medvista_ray.types.tool_calls import ToolFailure

START_TIMEOUT_S = 60.0
MAX_ATTEMPTS = 2  # a call is tried once more when its worker dies under it; never after a deadline
_CLOSED = "the tool pool is closed"
_log = logging.getLogger(__name__)


class WorkerProcess:
    """One worker: its process and its channel."""

    def __init__(
        self,
        targets: Sequence[str],
        *,
        start_timeout_s: float = START_TIMEOUT_S,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Start a process that makes the tools of these targets; `environment` adds to that of this process."""
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        self._environment = environment
        with theirs:
            self._process = self._spawn(theirs.fileno())
        self._is_ready = False
        self._start_deadline = time.monotonic() + start_timeout_s
        with contextlib.suppress(ChannelClosedError):  # dead already: `wait_ready` will find out
            self._channel.send(Setup(tuple(targets)))

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

    def wait_ready(self) -> None:
        """Wait until the tools are made; `TimeoutError` or `ChannelClosedError` when they will not be."""
        if not self._is_ready:
            frame = self._channel.receive_in_pool(deadline=self._start_deadline)
            self._is_ready = isinstance(frame, Ready)

    def exchange(self, call: Call, *, deadline: float, load: Callable[[str], bytes]) -> Done:
        """Send a call, answer its wishes for images, return its end."""
        self._channel.send(call, deadline=deadline)
        while True:
            frame = self._channel.receive_in_pool(deadline=deadline)
            if isinstance(frame, Done):
                return frame
            if isinstance(frame, Need):
                self._channel.send(Blob(load(frame.digest)), deadline=deadline)

    def kill(self) -> None:
        """End the process and all that it started; may be called again."""
        if self._process.returncode is None:  # not reaped yet: the id is still ours
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._channel.close()


class ToolPool:
    """A fixed number of warm workers, each with every pooled tool."""

    def __init__(self, targets: Sequence[str], *, num_workers: int) -> None:
        self._targets = tuple(targets)
        self._condition = threading.Condition()
        self._is_closed = False
        self._busy: set[WorkerProcess] = set()
        self._free: list[WorkerProcess] = []
        self._executor = ThreadPoolExecutor(max_workers=num_workers, thread_name_prefix="tool-pool")
        try:
            for _ in range(num_workers):
                self._free.append(WorkerProcess(self._targets))
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
        if self._is_closed:
            return failed(ToolFailure.FAILED, _CLOSED)
        return await asyncio.get_running_loop().run_in_executor(self._executor, self.call_sync, request)

    def call_sync(self, request: Request) -> Execution:
        """Run a call; every way it can end is in the result."""
        execution = failed(ToolFailure.FAILED, _CLOSED)
        for attempt in range(MAX_ATTEMPTS):
            worker = self._take()
            if worker is None:
                return execution
            call = make_call(request, attempt=attempt)
            execution, is_alive = _try_call(worker, call, load=request.load, timeout_s=request.timeout_s)
            self._give_back(worker, is_alive=is_alive)
            if is_alive or execution.failure is ToolFailure.TIMED_OUT:
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
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _take(self) -> WorkerProcess | None:
        with self._condition:
            self._condition.wait_for(lambda: self._is_closed or self._free)
            if self._is_closed:
                return None
            worker = self._free.pop()
            self._busy.add(worker)
            return worker

    def _give_back(self, worker: WorkerProcess, *, is_alive: bool) -> None:
        if not is_alive:
            worker.kill()
        with self._condition:
            self._busy.discard(worker)
            if self._is_closed:
                return
            try:
                self._free.append(worker if is_alive else WorkerProcess(self._targets))
            except OSError:
                self._is_closed = True  # nobody may wait for a worker that will never come
                self._condition.notify_all()
                raise
            self._condition.notify()


def _try_call(
    worker: WorkerProcess, call: Call, *, load: Callable[[str], bytes], timeout_s: float
) -> tuple[Execution, bool]:
    """Run a call on one worker; return what it gave and whether the worker can be used again."""
    try:
        worker.wait_ready()
    except (TimeoutError, OSError, msgspec.DecodeError) as error:
        _log.warning("tool worker %d did not start: %s", worker.pid, error)
        return failed(ToolFailure.FAILED, "the worker of the tool did not start"), False
    try:
        done = worker.exchange(call, deadline=time.monotonic() + timeout_s, load=load)
    except TimeoutError:
        _log.warning("tool %s is past its deadline of %.1f s: worker %d is killed", call.tool, timeout_s, worker.pid)
        return failed(ToolFailure.TIMED_OUT, f"no result within {timeout_s:g} s"), False
    except (OSError, msgspec.DecodeError):
        _log.warning("worker %d died under tool %s", worker.pid, call.tool)
        return failed(ToolFailure.FAILED, "the worker of the tool died"), False
    return read_done(done), True
