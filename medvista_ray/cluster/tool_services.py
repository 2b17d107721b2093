"""Tool services as actors, one for each service tool, and the handle through which shards call them.

The actor holds a `ToolService`, which keeps the weights in a process of its own: what hangs or dies there is killed and
started again there, and the actor itself only waits. It has no state that a new one could not make (weights come from
disk, images from the callers), so unlike shards and engines it is Ray that restarts it, wherever there is room.

Calls travel as msgpack bytes, with the image that they name; the actor asks for others by digest (`Wanted`). A call
that has no time left ends here and kills nobody: all shards share the actor. It is killed when it has been silent for
longer than any call may take.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import msgspec
import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from medvista_ray.cluster.actors import ActorHome, home_of
from medvista_ray.cluster.faults import describe
from medvista_ray.errors import BlobMissingError, MedVistaError
from medvista_ray.images.store import MemoryBlobCache
from medvista_ray.tools.execution import Execution, Request, failed
from medvista_ray.tools.frames import Call, Done, make_call, make_done, read_done, to_plain
from medvista_ray.tools.pool import MAX_ATTEMPTS
from medvista_ray.tools.service import ServiceHealth, ToolService
from medvista_ray.tools.service_queue import ServiceMetrics
from medvista_ray.types.tool_calls import ToolFailure

_CACHE_BYTES = 128 * 2**20  # of images, in one actor
_MAX_CALLS = 64  # at once from one shard; further ones wait
_START_S = 120.0  # until an actor that Ray restarts answers again
_SILENT_S = 5.0  # beyond the longest time of a call, until an actor that answers nothing counts as frozen
_LOOK_S = 0.2
_PULSE_S = 1.0  # between two questions whether the actor lives
_METRICS_S = 2.0  # for an actor to tell its metrics; a train step does not wait longer
_REMEMBERED = 4096  # digests that the actor may still have
_DIED = "the service of the tool died"
_log = logging.getLogger(__name__)
_encode = msgspec.msgpack.Encoder(enc_hook=to_plain).encode
_decode_call = msgspec.msgpack.Decoder(Call).decode


class Wanted(msgspec.Struct, tag=True, frozen=True):
    """The call needs an image that has not come with it."""

    digest: str
    left_s: float  # of the tool's deadline; loading the weights has not counted


_decode_answer = msgspec.msgpack.Decoder(Done | Wanted).decode


class ToolServiceActor:
    """One service."""

    def __init__(self, spec: str, *, limit_s: float, num_threads: int) -> None:
        # In the constructor: Ray runs it again when it restarts this actor.
        self._service = ToolService(spec, limit_s=limit_s, num_threads=num_threads)
        self._blobs = MemoryBlobCache(_CACHE_BYTES)

    async def start(self) -> ActorHome:
        """Say where this runs."""
        return home_of(self)

    async def call(
        self, payload: bytes, *, timeout_s: float, budget_s: float = math.inf, blobs: Mapping[str, bytes]
    ) -> bytes:
        """Run a call; its end, or the digest of an image that has to come with it."""
        expires_s = time.monotonic() + budget_s
        if blobs:  # in a thread: hashing a volume takes long, and others ask whether this lives
            await asyncio.to_thread(self._keep, list(blobs.values()))
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
            arguments=call.arguments,
            records=call.records,
            load=load,
            key=call.key,
            timeout_s=timeout_s,
            expires_s=expires_s,
        )
        execution, left_s = await self._service.call_timed(request)
        if missing and execution.failure is ToolFailure.FAILED:
            return _encode(Wanted(missing[0], left_s))
        return _encode(make_done(execution))

    def _keep(self, blobs: Iterable[bytes]) -> None:
        for data in blobs:
            self._blobs.put(data)

    async def health(self) -> ServiceHealth:
        """Return how the service is."""
        return self._service.health()

    async def metrics(self) -> ServiceMetrics:
        """Return what the service has done."""
        return self._service.metrics()

    async def close(self) -> None:
        """End the process with the weights."""
        await asyncio.to_thread(self._service.close)


async def read_service_metrics(actors: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of services by name of tool; what does not answer is left out of them."""

    async def read(actor: Any) -> ServiceMetrics | None:
        try:
            async with asyncio.timeout(_METRICS_S):
                metrics: ServiceMetrics = await actor.metrics.remote()
                return metrics
        except (TimeoutError, RayError) as error:
            _log.warning("a tool service does not tell its metrics: %s", error)
            return None

    answers = await asyncio.gather(*(read(actor) for actor in actors.values()))
    found = zip(actors, answers, strict=True)
    return {key: value for name, metrics in found if metrics for key, value in metrics.named(name).items()}


class RemoteToolService:
    """The service of one tool, in another process: `tools.runner.ToolExecutor`."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._is_up = False
        self._lock = threading.Lock()  # of what follows
        self._sent: OrderedDict[str, None] = OrderedDict()  # digests that the actor got from here, the latest last
        self._asked_s: float | None = None  # the first question since the last answer; None = nothing is open
        self._threads = ThreadPoolExecutor(max_workers=_MAX_CALLS, thread_name_prefix="tool-service")

    async def call(self, request: Request) -> Execution:
        """Run a call without holding the event loop; every way it can end is in the result."""
        running = asyncio.get_running_loop().run_in_executor(self._threads, self.call_sync, request)
        left_s = None if request.expires_s == math.inf else max(0.0, request.expires_s - time.monotonic())
        try:
            return await asyncio.wait_for(running, left_s)
        except TimeoutError:  # it waits for a thread still; a call that runs ends by itself at the same time
            return _timed_out()

    def call_sync(self, request: Request) -> Execution:
        """Run a call; every way it can end is in the result."""
        left_s = request.timeout_s
        for attempt in range(MAX_ATTEMPTS):
            if not self._wait_until_up(request):
                return _timed_out() if request.is_expired else failed(ToolFailure.FAILED, _not_started(request))
            started_s = time.monotonic()
            try:
                return self._converse(request, attempt=attempt, timeout_s=left_s)
            except TimeoutError:  # no time is left to the episode, or the actor was frozen and is killed
                if request.is_expired:
                    return _timed_out()
            except RayTaskError as error:  # a fault of ours, over there
                return failed(ToolFailure.FAILED, f"{type(error.cause).__name__}: {error.cause}")
            except RayError as error:
                _log.warning("the service of %s died: %s", request.tool, describe(error))
                self._lose()
            left_s -= time.monotonic() - started_s
            if left_s <= 0:
                return _timed_out()
        return failed(ToolFailure.FAILED, _DIED)

    def close(self) -> None:
        """Let go of the actor, which is the launcher's to end; may be called again."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _converse(self, request: Request, *, attempt: int, timeout_s: float) -> Execution:
        """Send a call, then the images that the actor asks for."""
        payload, left_s = _encode(make_call(request, attempt=attempt)), timeout_s
        first = _named_digest(request)
        blobs = {} if first is None or first in self._sent else {first: request.load(first)}
        asked: set[str] = set()
        while True:
            budget_s = request.expires_s - time.monotonic()
            call = self._actor.call.remote(payload, timeout_s=left_s, budget_s=budget_s, blobs=blobs)
            answer = _decode_answer(self._ask(call, request))
            self._remember(blobs)
            if isinstance(answer, Done):
                return read_done(answer)
            if answer.digest in asked:
                return failed(ToolFailure.FAILED, f"image {answer.digest[:12]} does not fit into the service")
            asked.add(answer.digest)
            left_s = answer.left_s
            try:
                blobs = {**blobs, answer.digest: request.load(answer.digest)}
            except (KeyError, OSError, MedVistaError):
                return failed(ToolFailure.FAILED, f"image {answer.digest[:12]} is not there")

    def _ask(self, call: Any, request: Request) -> bytes:
        """Wait for an answer while the actor lives; `TimeoutError` when the episode ends first, or it was frozen.

        The actor keeps the deadline of the tool itself, and knows when that clock stands still.
        """
        answer, pulse = self._watch(call), None
        while True:
            left_s = request.expires_s - time.monotonic()
            wait([answer], timeout=max(0.0, min(_PULSE_S, left_s)))
            if answer.done():
                return bytes(answer.result())
            if left_s <= 0:
                raise TimeoutError("no time is left")
            if pulse is not None and pulse.done():
                pulse.result()
                pulse = None
            pulse = pulse or self._watch(self._actor.health.remote())
            self._kill_if_frozen(request)

    def _watch(self, call: Any) -> Future[Any]:
        """Note when the first of the open questions was asked; any answer shows that the actor lives."""
        with self._lock:
            if self._asked_s is None:
                self._asked_s = time.monotonic()
        answer: Future[Any] = call.future()
        answer.add_done_callback(lambda _: self._hear())
        return answer

    def _hear(self) -> None:
        with self._lock:
            self._asked_s = None

    def _kill_if_frozen(self, request: Request) -> None:
        with self._lock:
            if self._asked_s is None or time.monotonic() < self._asked_s + request.timeout_s + _SILENT_S:
                return
            self._asked_s = None  # killed once, however many calls wait
            self._is_up = False
            self._sent.clear()
        _log.warning("the service of %s does not answer: it is killed, and Ray starts another", request.tool)
        ray.kill(self._actor, no_restart=False)
        raise TimeoutError("the actor does not answer")

    def _wait_until_up(self, request: Request) -> bool:
        if self._is_up:
            return True
        deadline_s = min(time.monotonic() + _START_S, request.expires_s)
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

    def _remember(self, digests: Iterable[str]) -> None:
        with self._lock:
            for digest in digests:
                self._sent[digest] = None
                self._sent.move_to_end(digest)
            while len(self._sent) > _REMEMBERED:
                self._sent.popitem(last=False)

    def _lose(self) -> None:
        with self._lock:
            self._is_up = False
            self._asked_s = None
            self._sent.clear()


def _timed_out() -> Execution:
    return failed(ToolFailure.TIMED_OUT, "no result in time")


def _not_started(request: Request) -> str:
    return f"the service of {request.tool} did not start"


def _named_digest(request: Request) -> str | None:
    """Guess which image a call opens first: the one it names."""
    index, records = json.loads(request.arguments).get("image", 0), request.records
    return records[index].ref.digest if isinstance(index, int) and 0 <= index < len(records) else None
