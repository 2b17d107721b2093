"""Memory over ten thousand episodes of each env: flat after the warm-up, in this process and in its workers."""

import gc
import os
from pathlib import Path

import pytest
from test_envs_farming import KINDS, STOP, ZOOM, outline, say
from test_envs_interactive_segmentation import SPEC

from medvista_ray.config.schema import EnvConfig
from medvista_ray.data.sources import make_task_source
from medvista_ray.tools.runner import make_tool_runner

NUM_EPISODES, WARM_UP = 10_000, 2_000
ACTIONS = {
    "vqa": lambda record: (ZOOM, say("A")),
    "grounding": lambda record: (ZOOM, say("[[1, 1, 9, 9]]", "<box>[1, 1, 9, 9]</box>")),
    "segmentation": lambda record: (outline(record), STOP),
}


def resident_bytes(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", list(ACTIONS))
def test_memory_is_flat(kind):
    env_class, family, _ = KINDS[kind]
    tools = make_tool_runner([SPEC, "zoom"], timeout_s=20, num_workers=1)
    (pool,) = set(tools._executors.values())
    tasks = make_task_source("pocket", "train", families=(family,), weights=(), num_tasks=64, seed=0)
    env = env_class(tasks=tasks, tools=tools, config=EnvConfig(tools=(SPEC, "zoom"), view_size_px=84, max_turns=6))
    actions = [ACTIONS[kind](tasks[index]) for index in range(len(tasks))]
    base = 0
    try:
        for number in range(NUM_EPISODES):
            if number == WARM_UP:
                gc.collect()
                base = sum(map(resident_bytes, (os.getpid(), *pool.pids)))
            index = number % len(tasks)
            env.reset(options={"task_index": index})
            for action in actions[index]:
                *_, truncated, _ = env.step(action)
            assert not truncated
        gc.collect()
        grown = sum(map(resident_bytes, (os.getpid(), *pool.pids))) / base
    finally:
        tools.close()
    assert grown < 1.02, f"memory grew to {grown:.3f} of what it was after {WARM_UP} episodes"
