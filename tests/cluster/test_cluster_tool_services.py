"""Tool services, local and on Ray: the same calls, deaths and hangs end alike."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

pytest.importorskip("ray")
import ray
from service_env import SPEC
from small_runs import make_small_config, make_small_tasks
from tools_service_pack import Counts, SlowStart

from medvista_ray.assembly import RunPaths, Runtime
from medvista_ray.cluster.tool_services import RemoteToolService, ToolServiceActor
from medvista_ray.images.codec import encode_npy, encode_png, make_ref
from medvista_ray.images.store import MemoryBlobCache
from medvista_ray.tools.base import CallKey
from medvista_ray.tools.execution import Execution, Request
from medvista_ray.tools.renderer import ViewRenderer
from medvista_ray.tools.service import ServiceHealth, ToolService
from medvista_ray.tools.service_queue import ServiceMetrics
from medvista_ray.tools.shelf import ImageShelf
from medvista_ray.types.delivery import Admitted, GroupWork
from medvista_ray.types.messages import NPY_MIME, PNG_MIME, Task
from medvista_ray.types.protocols import TaskSource
from medvista_ray.types.tool_calls import ToolFailure
from medvista_ray.types.trajectories import TrajectoryGroup

LIMIT_S = 3.0
KEY = CallKey(trajectory="0/1/0#2", turn=3)
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
VALUES = np.random.default_rng(1).integers(-900, 900, (30, 20)).astype(np.int16)


class World:
    """One service, its executor, and what a test wants to know of it."""

    def __init__(self, kind: str, spec: str = SPEC) -> None:
        self.kind = kind
        self.tool = Counts.name
        self.actor: Any = None
        self.service: Any
        if kind == "local":
            self.service = ToolService(spec, limit_s=LIMIT_S)
        else:
            self.actor = (
                ray.remote(ToolServiceActor)
                .options(num_cpus=0, max_restarts=-1, max_concurrency=1000)
                .remote(spec, limit_s=LIMIT_S, num_threads=1)
            )
            self.service = RemoteToolService(self.actor)

    async def call(self, *, timeout_s: float = LIMIT_S, shelf: ImageShelf | None = None, **arguments: Any) -> Execution:
        shelf = shelf or make_shelf()
        request = Request(
            tool=self.tool,
            arguments=json.dumps(arguments),
            records=shelf.records,
            load=shelf.load,
            key=KEY,
            timeout_s=timeout_s,
        )
        execution: Execution = await self.service.call(request)
        return execution

    async def health(self) -> ServiceHealth:
        return self.service.health() if self.actor is None else await self.actor.health.remote()

    async def metrics(self) -> ServiceMetrics:
        return self.service.metrics() if self.actor is None else await self.actor.metrics.remote()

    async def close(self) -> None:
        await asyncio.to_thread(self.service.close)
        if self.actor is not None:
            ray.kill(self.actor)


@pytest_asyncio.fixture(params=["local", "ray"])
async def world(request: pytest.FixtureRequest, ray_here: None) -> AsyncIterator[World]:
    world = World(request.param)
    yield world
    pid = (await world.health()).pid
    await world.close()
    if pid is not None:
        await wait_until(lambda: not is_running(pid))


def make_shelf() -> ImageShelf:
    blobs = MemoryBlobCache()
    png, npy = encode_png(PIXELS), encode_npy(VALUES)
    refs = (
        make_ref(png, mime=PNG_MIME, width=50, height=40),
        make_ref(npy, mime=NPY_MIME, width=20, height=30, spacing_mm=(1.0, 1.0)),
    )
    for data in (png, npy):
        blobs.put(data)
    return ImageShelf(
        Task(task_id="t", family="f", question="q", images=refs), renderer=ViewRenderer(blobs, view_size_px=64)
    )


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def wait_until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110 -- another process
            await asyncio.sleep(0.05)


def numbers_of(execution: Execution) -> list[int]:
    """pid of the process, how often it loaded, size of the batch, attempt"""
    assert execution.failure is None, execution.error
    return [int(part) for part in execution.output.text.split("/")]


async def test_concurrent_calls_run_in_batches_on_weights_that_load_once(world: World) -> None:
    first = numbers_of(await world.call())
    numbers = [numbers_of(end) for end in await asyncio.gather(*(world.call(sleep_s=0.02) for _ in range(10)))]
    assert {pid for pid, *_ in numbers} == {first[0]} != {os.getpid()}
    assert {loads for _, loads, *_ in numbers} == {1}
    assert max(size for _, _, size, _ in numbers) > 1
    metrics = await world.metrics()
    assert 1 < metrics.max_batch <= Counts.max_batch
    assert metrics.num_calls == 11
    assert metrics.num_batches < 11
    assert (await world.health()).is_loaded


async def test_images_of_a_call_get_there_and_back(world: World) -> None:
    for index, expected in ((0, 255 - PIXELS), (0, 255 - PIXELS), (1, None)):
        execution = await world.call(image=index)
        assert execution.failure is None, execution.error
        (picture,) = execution.output.images
        assert picture.mask is not None
        assert picture.mask.all()
        assert expected is None or np.array_equal(picture.pixels, expected)
    assert (await world.call(image=9)).failure is ToolFailure.BAD_ARGUMENT


async def test_a_service_process_killed_in_the_middle_runs_the_call_again(world: World) -> None:
    pid = numbers_of(await world.call())[0]
    call = asyncio.create_task(world.call(sleep_s=0.6), name="call")
    await asyncio.sleep(0.3)
    os.kill(pid, signal.SIGKILL)
    again = numbers_of(await call)
    assert again[0] != pid
    assert again[3] == 1
    assert numbers_of(await world.call())[3] == 0
    assert (await world.health()).num_restarts == 1


async def test_a_hang_times_out_and_the_next_call_works(world: World) -> None:
    pid = numbers_of(await world.call())[0]
    hung = await world.call(sleep_s=600)
    assert hung.failure is ToolFailure.TIMED_OUT
    again = numbers_of(await world.call())
    assert again[0] != pid
    assert not is_running(pid)


async def test_a_short_deadline_holds_and_kills_nobody(world: World) -> None:
    pid = numbers_of(await world.call())[0]
    assert (await world.call(timeout_s=0.1, sleep_s=0.5)).failure is ToolFailure.TIMED_OUT
    assert numbers_of(await world.call())[0] == pid


async def test_a_dead_or_frozen_actor_comes_back(ray_here: None) -> None:
    world = World("ray")
    try:
        first = numbers_of(await world.call())[0]
        home = await world.actor.start.remote()
        call = asyncio.create_task(world.call(sleep_s=0.6), name="call")
        await asyncio.sleep(0.3)
        os.kill(home.record.pid, signal.SIGKILL)
        again = numbers_of(await call)
        assert again[0] != first
        assert again[3] == 1
        await wait_until(lambda: not is_running(first))  # what the actor had started went with it
        home = await world.actor.start.remote()
        os.kill(home.record.pid, signal.SIGSTOP)
        started = time.monotonic()
        assert (await world.call(timeout_s=1.0)).failure is ToolFailure.TIMED_OUT
        assert time.monotonic() - started < 20
        assert numbers_of(await world.call())[0] not in (first, again[0])
        await wait_until(lambda: not is_running(home.record.pid))
    finally:
        await world.close()


@pytest.mark.parametrize("kind", ["local", "ray"])
async def test_loading_counts_towards_no_deadline_when_images_come_one_by_one(kind: str, ray_here: None) -> None:
    world = World(kind, "tools_service_pack:SlowStart")
    try:
        world.tool = SlowStart.name
        execution = await world.call(timeout_s=0.9, images=[1, 0])  # loading takes 1 s, at least
        assert execution.failure is None, execution.error
        assert execution.output.text == "loaded"
    finally:
        await world.close()


@pytest.mark.parametrize("kind", ["local", "ray"])
async def test_the_shards_of_a_run_share_one_service(
    kind: str, small_policy: Path, tmp_path: Path, ray_here: None
) -> None:
    if kind == "local":
        from medvista_ray.local import start_local as start
    else:
        from medvista_ray.cluster.launch import start_cluster as start
    config = make_small_config(small_policy, cluster={"service_cpus": 0.1})
    config = replace(config, env=replace(config.env, target="service_env:ServiceEnv", tools=("zoom", SPEC)))
    paths, tasks = RunPaths(blobs=tmp_path / "blobs", weights=tmp_path / "weights"), make_small_tasks(config)
    runtime = await start(config, paths, tasks)
    try:
        groups = await run_groups(runtime, tasks, count=4, group_size=config.rollout.group_size)
        metrics = await runtime.parts.read_tools()
    finally:
        await runtime.close()
    breakdowns = [member.reward_breakdown for group in groups for member in group.live]
    assert len(breakdowns) == 16
    (pid,) = {int(breakdown["pid"]) for breakdown in breakdowns}  # one process for all shards
    assert max(breakdown["batch"] for breakdown in breakdowns) > 1
    await wait_until(lambda: not is_running(pid))
    assert metrics["tools/counts_calls/count"] >= 16
    assert metrics["tools/counts_batch_size/mean"] > 1
    assert metrics["tools/counts_restarts/count"] == 0
    assert metrics["tools/counts_latency_s/p90"] > 0
    services = [actor.pid for actor in runtime.actors if actor.name == "ToolServiceActor"]
    assert len(services) == (0 if kind == "local" else 1)
    await wait_until(lambda: not any(map(is_running, services)))


async def run_groups(runtime: Runtime, tasks: TaskSource, *, count: int, group_size: int) -> list[TrajectoryGroup]:
    parts = runtime.parts
    await parts.engines.stage(await parts.learner.write_weights(0))
    await parts.engines.swap(0)
    await parts.env_pool.set_engines(parts.engines.engine_set())
    works = []
    for index in range(count):
        admitted = await parts.buffer.admit(f"0/{index}/0", incarnation=0)
        assert isinstance(admitted, Admitted)
        for digest, data in tasks[index].blobs.items():
            await parts.blobs.put_if_absent(digest, data)
        works.append(
            GroupWork(
                task=tasks[index].task,
                reference=tasks[index].reference,
                group_id=admitted.group_id,
                attempt=admitted.attempt,
                incarnation=0,
                group_size=group_size,
            )
        )
    await asyncio.gather(*(parts.env_pool.run_group(work) for work in works))
    page = await parts.buffer.read(after=(0, 0), limit=1000)
    return [entry for _, entry in page.entries if isinstance(entry, TrajectoryGroup)]
