"""What the gym costs: steps, tools, the pool, imports, memory, episodes a second.

python benchmarks/env.py --json env.json [--quick]
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from results import Result, parse_arguments, report

from medvista_ray.config.schema import EnvConfig
from medvista_ray.data.sources import make_task_source
from medvista_ray.envs.medical_vqa import MedicalVQAEnv
from medvista_ray.images.store import MemoryBlobCache
from medvista_ray.tools.base import CallKey, Tool, ToolContext, ToolOutput
from medvista_ray.tools.execution import Execution
from medvista_ray.tools.renderer import RenderedImage, ViewRenderer
from medvista_ray.tools.runner import ToolRunner, make_tool_runner
from medvista_ray.tools.shelf import ImageShelf
from medvista_ray.types.tool_calls import ToolCall

VIEW_PX = 84
IMPORT = "import time; t = time.perf_counter(); import medvista_ray.envs; print(time.perf_counter() - t)"
ANSWER = "<think>x</think><answer>L</answer>"
_EPISODE = (
    '<think>x</think><tool_call>{"name":"zoom","arguments":{"bbox":[333,0,667,333]}}</tool_call>',
    ANSWER,
)
_PAINTED = (
    '<think>x</think><tool_call>{"name":"segment","arguments":{"bbox":[200,200,800,800]}}</tool_call>',
    '<think>x</think><tool_call>{"name":"enhance","arguments":{"method":"clahe"}}</tool_call>',
)
NO_OP = '<think>x</think><tool_call>{"name":"no_op","arguments":{}}</tool_call>'


class NoOp(Tool):
    """Does nothing."""

    name = "no_op"
    description = "Does nothing."
    parameters: Mapping[str, Any] = {"type": "object"}

    def run(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutput:
        """Return a word."""
        return ToolOutput(text="done")


class Glance(NoOp):
    """Opens image 0 and does nothing with it."""

    name = "glance"

    def run(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutput:
        """Return the size of the image."""
        return ToolOutput(text=str(context.image(0).source_values().shape))


class AtOnce:
    """An executor that runs a no-op in place, so that what is left of a step is the env's own work."""

    async def call(self, *args: Any, **kwargs: Any) -> Execution:
        """Return the output of a no-op."""
        return Execution(output=ToolOutput(text="done"))

    def call_sync(self, *args: Any, **kwargs: Any) -> Execution:
        """Return the output of a no-op."""
        return Execution(output=ToolOutput(text="done"))

    def close(self) -> None:
        """Hold nothing."""


class CountingRenderer(ViewRenderer):
    """Counts how often pixels are encoded."""

    num_encodes = 0

    def _encode(self, *args: Any, **kwargs: Any) -> RenderedImage:
        self.num_encodes += 1
        return super()._encode(*args, **kwargs)


def make_tasks(families: tuple[str, ...] = ("zoom", "window")) -> Any:
    """Return tasks over images of the base installation."""
    return make_task_source("pocket", "train", families=families, weights=(), num_tasks=64, seed=0)


def make_env(**parts: Any) -> MedicalVQAEnv:
    """Make the env of the measurements."""
    config = EnvConfig(view_size_px=VIEW_PX, max_turns=10_000)
    return MedicalVQAEnv(tasks=make_tasks(), config=config, **parts)


def median_ms(work: Callable[[], object], count: int) -> float:
    """Return the median time of a call in milliseconds."""
    times = []
    for _ in range(count):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


def measure_step(count: int) -> float:
    """Return the time of a step around a text-only no-op."""
    env = make_env(tools=ToolRunner({"no_op": NoOp()}, timeout_s=10, executors={"no_op": AtOnce()}))
    env.reset(seed=0)
    for _ in range(50):
        env.step(NO_OP)
    env.reset(seed=0)
    return median_ms(lambda: env.step(NO_OP), count)


def measure_import(count: int) -> float:
    """Return the time that importing the envs takes in a fresh process, in seconds."""
    done = [subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True) for _ in range(count)]
    return statistics.median(float(each.stdout) for each in done)


def measure_memory(num_episodes: int) -> float:
    """Return resident memory after many episodes over what it was after the first tenth."""
    env = make_env()
    base = 0
    for number in range(num_episodes):
        if number == num_episodes // 10:
            base = resident_bytes()
        play(env, number % 64)
    return resident_bytes() / base


def resident_bytes() -> int:
    """Return the resident memory of this process after a collection."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def play(env: MedicalVQAEnv, index: int) -> None:
    """Play one episode: a zoom, then an answer."""
    env.reset(options={"task_index": index})
    for action in _EPISODE:
        env.step(action)


def measure_pool(count: int) -> float:
    """Return the round trip of a call to a warm worker that opens an 84 px image and does nothing with it."""
    runner = make_tool_runner([f"{Path(__file__).stem}:Glance"], timeout_s=30, num_workers=1)
    try:
        shelf = make_shelf("window")
        call = ToolCall(name="glance", arguments={})
        work = lambda: runner.run(call, shelf=shelf, key=CallKey())  # noqa: E731
        median_ms(work, 20)
        return median_ms(work, count)
    finally:
        runner.close()


def make_shelf(family: str) -> ImageShelf:
    """Return the images of one task, a zoom of it among them."""
    record = make_tasks((family,))[0]
    renderer = ViewRenderer(MemoryBlobCache(), view_size_px=VIEW_PX)
    for data in record.blobs.values():
        renderer.blobs.put(data)
    return ImageShelf(record.task, renderer=renderer)


def measure_encodes(num_members: int) -> float:
    """Return encodes over distinct images shown, when the members of a group look, filter and segment alike."""
    renderer = CountingRenderer(MemoryBlobCache(), view_size_px=VIEW_PX)
    tools = make_tool_runner(["zoom", "segment_classical", "enhance"], timeout_s=60, num_workers=1)
    envs = [make_env(renderer=renderer, tools=tools) for _ in range(num_members)]
    shown: set[str] = set()
    try:
        for index in range(8):
            for env in envs:
                observation, _ = env.reset(options={"task_index": index})
                for action in (*_PAINTED, *_EPISODE):
                    rows = json.loads(observation["messages"])
                    shown |= {part["digest"] for row in rows for part in row["parts"] if part["type"] == "image"}
                    observation, *_, info = env.step(action)
                    if info["tool_failure"] is not None:
                        raise RuntimeError(observation["messages"])
    finally:
        tools.close()
    return renderer.num_encodes / len(shown)


def measure_tool(name: str, calls: list[dict[str, Any]], *, family: str, count: int) -> float:
    """Return the median time of a call through the runner, image drawing and encoding included."""
    runner = make_tool_runner([name], timeout_s=120, num_workers=1)
    try:
        shelf = make_shelf(family)
        key = CallKey()
        numbers = iter(range(10**9))

        def work() -> None:
            call = ToolCall(name=runner.names[0], arguments=calls[next(numbers) % len(calls)])
            outcome = runner.run(call, shelf=shelf, key=key)
            if outcome.is_error:
                raise RuntimeError(f"{name}: {outcome.text}")

        work()
        return median_ms(work, count)
    finally:
        runner.close()


def play_many(seconds: float) -> float:
    """Return episodes a second of one process."""
    env = make_env()
    play(env, 0)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        play(env, count % 64)
        count += 1
    return count / (time.perf_counter() - started)


def measure_tools(count: int, rng: np.random.Generator) -> list[Result]:
    """Measure single tools; places are drawn, so that few calls find a view drawn before."""
    corners = rng.integers(0, 600, size=(count, 2)).tolist()
    boxes = [{"bbox": [x, y, x + 334, y + 334]} for x, y in corners]
    windows = [{"center": float(x), "width": 300.0 + y} for x, y in corners]
    points = [
        {"points": [[x, y], [y, x]], "unit": "pixels"} for x, y in (rng.integers(0, 84, size=(count, 2))).tolist()
    ]
    rows = [("zoom", boxes, "zoom"), ("window_level", windows, "window"), ("measure", points, "measure")]
    results = [
        Result(
            metric=f"{name.removesuffix('_level')}_p50_ms",
            value=measure_tool(name, calls, family=family, count=count),
            unit="ms",
        )
        for name, calls, family in rows
    ]
    value = measure_tool("segment", boxes[:4], family="zoom", count=max(4, count // 50))
    return [*results, Result(metric="segment_p50_ms", value=value, unit="ms")]


def main() -> None:
    """Measure and report."""
    arguments = parse_arguments(__doc__ or "")
    count = 300 if arguments.quick else 2000
    cores = len(os.sched_getaffinity(0))
    seconds = 3.0 if arguments.quick else 10.0
    with ProcessPoolExecutor(max_workers=cores, mp_context=get_context("spawn")) as pool:
        rates = list(pool.map(play_many, [seconds] * cores))
    results = [
        Result(metric="step_overhead_ms", value=measure_step(count), unit="ms", bar=0.5, op="<="),
        Result(metric="import_envs_s", value=measure_import(5), unit="s", bar=0.5, op="<="),
        Result(
            metric="memory_growth_ratio",
            value=measure_memory(1000 if arguments.quick else 10_000),
            unit="ratio",
            bar=1.02,
            op="<=",
        ),
        Result(metric="pool_call_overhead_ms", value=measure_pool(count), unit="ms", bar=2.0, op="<="),
        Result(metric="encode_once_ratio", value=measure_encodes(8), unit="ratio", bar=1.0, op="<="),
        *measure_tools(count, np.random.default_rng(arguments.seed)),
        Result(metric="episodes_per_s_1core", value=play_many(seconds), unit="1/s"),
        Result(metric="episodes_per_s_allcores", value=sum(rates), unit="1/s"),
    ]
    report(results, title="The gym", seed=arguments.seed, path=arguments.json)


if __name__ == "__main__":
    main()
