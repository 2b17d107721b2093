"""A worker process of the tool pool or of a service: makes its tools, then runs calls until its parent is gone.

    reader thread: frames of the pool -> queue; ends the process when the socket closes, whatever the tool is doing
    main thread:   queue -> tool -> Done

Started as `python -m medvista_ray.tools.worker FD`, so that no user's `__main__` is imported again.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import socket
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from medvista_ray.errors import BlobMissingError, MedVistaError, MissingPackageError
from medvista_ray.tools.base import ServiceCall, ServiceTool, Tool, ToolContext
from medvista_ray.tools.execution import Execution, execute, execute_batch, failed
from medvista_ray.tools.frames import (
    Batch,
    BatchDone,
    Blob,
    Call,
    Channel,
    ChannelClosedError,
    Done,
    FromPool,
    Making,
    Missing,
    Need,
    Ready,
    Setup,
    make_done,
)
from medvista_ray.tools.registry import make_tool
from medvista_ray.types.tool_calls import ToolFailure

_CACHED_BLOBS = 16
_log = logging.getLogger(__name__)


class Worker:
    """Runs calls from its queue."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._inbox: queue.SimpleQueue[FromPool] = queue.SimpleQueue()
        self._tools: dict[str, Tool] = {}
        self._unusable: dict[str, Execution] = {}
        self._blobs: OrderedDict[str, bytes] = OrderedDict()

    def read_frames(self) -> None:
        """Fill the inbox; end the process when the pool is gone, even in the middle of a tool."""
        try:
            while True:
                self._inbox.put(self._channel.receive_in_worker())
        except (ChannelClosedError, OSError, msgspec.DecodeError):
            os._exit(0)

    def serve(self) -> None:
        """Answer frames for ever; the reader ends the process."""
        while True:
            frame = self._inbox.get()
            if isinstance(frame, Setup):
                self._set_up(frame)
                self._channel.send(Ready())
            elif isinstance(frame, Call):
                self._channel.send(_done_of(self._run(frame)))
            elif isinstance(frame, Batch):
                self._channel.send(BatchDone(tuple(map(_done_of, self._run_batch(frame.calls)))))

    def _set_up(self, setup: Setup) -> None:
        for name, target in setup.targets.items():
            self._channel.send(Making(name))
            try:
                tool = make_tool(target)
                tool.warm_up()
            except (ModuleNotFoundError, MissingPackageError) as error:
                self._unusable[name] = failed(ToolFailure.NOT_INSTALLED, str(error))
            except (Exception, SystemExit) as error:  # noqa: BLE001  -- a third party's code may raise anything
                self._unusable[name] = failed(
                    ToolFailure.FAILED, f"{name} cannot be made: {type(error).__name__}: {error}"
                )
            else:
                self._tools[name] = tool

    def _run(self, call: Call) -> Execution:
        if call.tool in self._unusable:
            return self._unusable[call.tool]
        if call.tool not in self._tools:
            return failed(ToolFailure.FAILED, f"this worker has no tool {call.tool!r}")
        service_call = self._open(call)
        return execute(self._tools[call.tool], service_call.arguments, service_call.context)

    def _run_batch(self, calls: Sequence[Call]) -> list[Execution]:
        tool = self._tools.get(calls[0].tool)
        if not isinstance(tool, ServiceTool):
            return [self._run(call) for call in calls]
        return execute_batch(tool, [self._open(call) for call in calls])

    def _open(self, call: Call) -> ServiceCall:
        context = ToolContext(call.records, load=self._load, key=call.key)
        return ServiceCall(arguments=json.loads(call.arguments), context=context)

    def _load(self, digest: str) -> bytes:
        if digest not in self._blobs:
            self._channel.send(Need(digest))
            frame = self._inbox.get()
            if isinstance(frame, Missing):
                raise BlobMissingError(f"image {digest[:12]} is not there")
            if not isinstance(frame, Blob):
                raise MedVistaError("the pool did not answer with an image")
            self._blobs[digest] = frame.data
            if len(self._blobs) > _CACHED_BLOBS:
                self._blobs.popitem(last=False)
        self._blobs.move_to_end(digest)
        return self._blobs[digest]


def _done_of(execution: Execution) -> Done:
    """Make a frame that can be sent, and read on the other side; else say what is wrong with the output."""
    try:
        return make_done(execution)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        return make_done(failed(ToolFailure.FAILED, f"the output cannot be sent: {error}"))


def main() -> None:
    """Serve the socket whose descriptor is the first argument."""
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    worker = Worker(channel)
    threading.Thread(target=worker.read_frames, name="frames", daemon=True).start()
    try:
        worker.serve()
    except ChannelClosedError:
        _log.debug("the pool is gone")


if __name__ == "__main__":
    main()
