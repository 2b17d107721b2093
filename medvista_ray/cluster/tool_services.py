"""Tool services as actors, one for each service tool, and the handle through which shards call them.

The actor holds a `ToolService`, which keeps the weights in a process of its own: what hangs or dies there is killed and
started again there, and the actor itself only waits. It has no state that a new one could not make (weights come from
disk, images from the callers), so unlike shards and engines it is Ray that restarts it, wherever there is room.

Calls travel as msgpack bytes, with the image that they name; the actor asks for others by digest (`Need`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import msgspec
import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from medvista_ray.cluster.actors import ActorHome, home_of
from medvista_ray.cluster.faults import describe
from medvista_ray.errors import BlobMissingError, MedVistaError
from medvista_ray.images.store import MemoryBlobCache
from medvista_ray.tools.execution import Execution, Request, failed
from medvista_ray.tools.frames import Call, Done, Need, make_call, make_done, read_done, to_plain
from medvista_ray.tools.pool import MAX_ATTEMPTS
from medvista_ray.tools.service import ServiceHealth, ToolService
from medvista_ray.tools.service_queue import ServiceMetrics
from medvista_ray.types.tool_calls import ToolFailure

_CACHE_BYTES = 128 * 2**20  # of images, in one actor
_MAX_CALLS = 64  # at once from one shard; further ones wait
_START_S = 120.0  # until an actor that Ray restarts answers again
_GRACE_S = 0.5  # for the answer to arrive, past the deadline that the actor keeps
_LOOK_S = 0.2
_DIED = "the service of the tool died"
_log = logging.getLogger(__name__)
_encode = msgspec.msgpack.Encoder(enc_hook=to_plain).encode
_decode_call = msgspec.msgpack.Decoder(Call).decode
_decode_answer = msgspec.msgpack.Decoder(Done | Need).decode


class ToolServiceActor:
    """One service."""

    def __init__(self, spec: str, *, limit_s: float, num_threads: int) -> None:
        # In the constructor: Ray runs it again when it restarts this actor.
        self._service = ToolService(spec, limit_s=limit_s, num_threads=num_threads)
        self._blobs = MemoryBlobCache(_CACHE_BYTES)

    async def start(self) -> ActorHome:
        """Say where this runs."""
        return home_of(self)

    async def call(self, payload: bytes, *, timeout_s: float, blobs: Mapping[str, bytes]) -> bytes:
        """Run a call; its end, or the digest of an image that has to come with it."""
        for data in blobs.values():
            self._blobs.put(data)
        call = _decode_call(payload)
        missing: list[str] = []

        def load(digest: str) -> bytes:
            try:
                return blobs[digest] if digest in blobs else self._blobs.get(digest)
            except BlobMissingError:
                missing.append(digest)
                raise

        request = Request(
            tool=call.tool,
            arguments=json.loads(call.arguments),
            records=call.records,
            load=load,
            key=call.key,
            timeout_s=timeout_s,
        )
        execution = await self._service.call(request)
        if missing and execution.failure is ToolFailure.FAILED:
            return _encode(Need(missing[0]))
        return _encode(make_done(execution))

    async def health(self) -> ServiceHealth:
        """Return how the service is."""
        return self._service.health()

    async def metrics(self) -> ServiceMetrics:
        """Return what the service has done."""
        return self._service.metrics()

    async def close(self) -> None:
        """End the process with the weights."""
        await asyncio.to_thread(self._service.close)


class RemoteToolService:
    """The service of one tool, in another process: `tools.runner.ToolExecutor`."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._is_up = False
        self._sent: set[str] = set()  # digests that the actor got from here, if it has not dropped them
        self._threads = ThreadPoolExecutor(max_workers=_MAX_CALLS, thread_name_prefix="tool-service")

    async def call(self, request: Request) -> Execution:
        """Run a call without holding the event loop; every way it can end is in the result."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.call_sync, request)

    def call_sync(self, request: Request) -> Execution:
        """Run a call; every way it can end is in the result."""
        left_s = request.timeout_s
        for attempt in range(MAX_ATTEMPTS):
            if not self._wait_until_up():
                return failed(ToolFailure.FAILED, "the service of the tool did not start")
            started_s = time.monotonic()
            try:
                return self._converse(request, attempt=attempt, timeout_s=left_s)
            except TimeoutError:
                _log.warning("the service of %s does not answer: it is killed, and Ray starts another", request.tool)
                self._lose()
                ray.kill(self._actor, no_restart=False)
                return failed(ToolFailure.TIMED_OUT, "no result in time")
            except RayTaskError as error:  # a fault of ours, over there
                return failed(ToolFailure.FAILED, f"{type(error.cause).__name__}: {error.cause}")
            except RayError as error:
                _log.warning("the service of %s died: %s", request.tool, describe(error))
                self._lose()
            left_s -= time.monotonic() - started_s
            if left_s <= 0:
                return failed(ToolFailure.TIMED_OUT, "no result in time")
        return failed(ToolFailure.FAILED, _DIED)

    def close(self) -> None:
        """Let go of the actor, which is the launcher's to end; may be called again."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _converse(self, request: Request, *, attempt: int, timeout_s: float) -> Execution:
        """Send a call, then the images that the actor asks for."""
        payload, deadline_s = _encode(make_call(request, attempt=attempt)), time.monotonic() + timeout_s
        first = _named_digest(request)
        blobs = {} if first is None or first in self._sent else {first: request.load(first)}
        asked: set[str] = set()
        while True:
            left_s = max(0.0, deadline_s - time.monotonic())
            answer = _decode_answer(
                self._ask(self._actor.call.remote(payload, timeout_s=left_s, blobs=blobs), timeout_s=left_s)
            )
            self._sent.update(blobs)
            if isinstance(answer, Done):
                return read_done(answer)
            if answer.digest in asked:
                return failed(ToolFailure.FAILED, f"image {answer.digest[:12]} does not fit into the service")
            asked.add(answer.digest)
            try:
                blobs = {**blobs, answer.digest: request.load(answer.digest)}
            except (KeyError, OSError, MedVistaError):
                return failed(ToolFailure.FAILED, f"image {answer.digest[:12]} is not there")

    def _ask(self, call: Any, *, timeout_s: float) -> bytes:
        """Wait for an answer for as long as the actor lives; `TimeoutError` when it has frozen.

        The actor keeps the deadline itself, and knows when its clock stands still.
        """
        answer: Future[Any] = call.future()
        while True:
            wait([answer], timeout=timeout_s / 2)
            if answer.done():
                return bytes(answer.result())
            life: Future[Any] = self._actor.health.remote().future()
            wait([answer, life], timeout=timeout_s / 2 + _GRACE_S, return_when=FIRST_COMPLETED)
            if answer.done():
                return bytes(answer.result())
            if not life.done():
                raise TimeoutError("the actor does not answer")
            life.result()
            timeout_s = max(timeout_s, _GRACE_S)

    def _wait_until_up(self) -> bool:
        if self._is_up:
            return True
        deadline_s = time.monotonic() + _START_S
        while (left_s := deadline_s - time.monotonic()) > 0:
            up: Future[ActorHome] = self._actor.start.remote().future()
            try:
                up.result(timeout=left_s)
            except ActorUnavailableError:  # Ray is starting it again, and has sent this call to the one before
                time.sleep(_LOOK_S)
                continue
            except (TimeoutError, RayError) as error:
                _log.warning("a tool service did not start: %s", error)
                return False
            self._is_up = True
            return True
        return False

    def _lose(self) -> None:
        self._is_up = False
        self._sent.clear()


def _named_digest(request: Request) -> str | None:
    """Guess which image a call opens first: the one it names."""
    index, records = request.arguments.get("image", 0), request.records
    return records[index].ref.digest if isinstance(index, int) and 0 <= index < len(records) else None
