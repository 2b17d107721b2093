"""A worker process of the tool pool: makes its tools, then runs one call after another until the pool is gone.

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

import msgspec

from medvista_ray.errors import MedVistaError
from medvista_ray.tools.base import Tool, ToolContext
from medvista_ray.tools.execution import Execution, execute, failed
from medvista_ray.tools.frames import (
    Blob,
    Call,
    Channel,
    ChannelClosedError,
    FromPool,
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
                self._finish(self._run(frame))

    def _finish(self, execution: Execution) -> None:
        try:
            self._channel.send(make_done(execution))
        except (TypeError, ValueError, OverflowError) as error:  # raised by the encoder, before a byte is sent
            self._channel.send(make_done(failed(ToolFailure.FAILED, f"the output cannot be sent: {error}")))

    def _set_up(self, setup: Setup) -> None:
        for target in setup.targets:
            tool = make_tool(target)
            self._tools[tool.name] = tool
            try:
                tool.warm_up()
            except ModuleNotFoundError as error:
                self._unusable[tool.name] = failed(ToolFailure.NOT_INSTALLED, str(error))
            except Exception as error:  # noqa: BLE001  -- a third party's code may raise anything
                self._unusable[tool.name] = failed(ToolFailure.FAILED, f"{type(error).__name__}: {error}")

    def _run(self, call: Call) -> Execution:
        if call.tool in self._unusable:
            return self._unusable[call.tool]
        context = ToolContext(call.records, load=self._load, key=call.key)
        return execute(self._tools[call.tool], json.loads(call.arguments), context)

    def _load(self, digest: str) -> bytes:
        if digest not in self._blobs:
            self._channel.send(Need(digest))
            frame = self._inbox.get()
            if not isinstance(frame, Blob):
                raise MedVistaError("the pool did not answer with an image")
            self._blobs[digest] = frame.data
            if len(self._blobs) > _CACHED_BLOBS:
                self._blobs.popitem(last=False)
        self._blobs.move_to_end(digest)
        return self._blobs[digest]


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
