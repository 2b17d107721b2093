"""The canary walk over every env, every tool and every data set: no byte of a reference leaves an env.

Each task is played twice, under its own reference and under one made of canaries, with a call of every tool: what the
policy sees must not differ, and no canary may be in any observation, info, repr or log line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniatures import WRITERS

from medvista_ray.config.schema import EnvConfig
from medvista_ray.data.embedded import FAMILIES
from medvista_ray.data.packages import prepare_embedded
from medvista_ray.data.prepare import PrepareSettings, prepare
from medvista_ray.data.sources import make_task_source
from medvista_ray.envs.check_env import CHECKS
from medvista_ray.envs.check_play import Subject, play
from medvista_ray.envs.grounding import GroundingEnv
from medvista_ray.envs.interactive_segmentation import InteractiveSegmentationEnv
from medvista_ray.envs.medical_vqa import MedicalVQAEnv
from medvista_ray.images.store import MemoryBlobCache
from medvista_ray.tools.registry import BUILTIN_TOOLS
from medvista_ray.tools.renderer import ViewRenderer
from medvista_ray.tools.runner import ToolRunner, make_tool_runner
from medvista_ray.types.protocols import TaskSource

# `segment` without its weights, so that hundreds of calls take seconds; its service carries the same frames.
TOOLS = (*(name for name in BUILTIN_TOOLS if name != "segment"), "segment_classical")
ENVS = {"vqa": MedicalVQAEnv, "grounding": GroundingEnv, "segmentation": InteractiveSegmentationEnv}


@pytest.fixture(scope="module")
def tools() -> Any:
    runner = make_tool_runner(TOOLS, timeout_s=60, num_workers=1)
    assert set(runner.names) == set(BUILTIN_TOOLS), "every tool is walked"
    yield runner
    runner.close()


def make_subject(kind: str, tasks: TaskSource, tools: ToolRunner) -> Subject:
    config = EnvConfig(tools=TOOLS, max_turns=30, view_size_px=84)
    renderer = ViewRenderer(MemoryBlobCache(), view_size_px=config.view_size_px)
    return Subject(
        make=lambda **_: ENVS[kind](config=config, tools=tools, renderer=renderer),
        tasks=tasks,
        descriptions=tools.descriptions,
        tools=TOOLS,
        step_timeout_s=60.0,
    )


def walk(kind: str, tasks: TaskSource, tools: ToolRunner) -> list[str]:
    """Return the leaks of an env over the first tasks of a source, with a call of every tool and action."""
    return CHECKS["no label leaves"](make_subject(kind, tasks, tools))


def test_every_tool_and_action_gives_a_result_somewhere(tools: ToolRunner) -> None:
    """A walk over calls that are all refused would prove nothing."""
    prepare_embedded()
    worked: set[str] = set()
    for family in ("slice", "header", "ocr", "insert_mask", "insert_box"):
        tasks = make_task_source("embedded", "train", families=(family,), weights=(), num_tasks=0, seed=0)
        played = play(make_subject(FAMILIES[family].group, tasks, tools), tasks[0], tasks[0].reference)
        worked |= {name for name, failure in played.outcomes if failure is None}
    assert worked >= {*BUILTIN_TOOLS, "add_bbox", "add_point", "stop_action"}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_embedded(family: str, tools: ToolRunner) -> None:
    prepare_embedded()
    tasks = make_task_source("embedded", "train", families=(family,), weights=(), num_tasks=0, seed=0)
    assert walk(FAMILIES[family].group, tasks, tools) == []


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_prepared(name: str, tools: ToolRunner, tmp_path: Path) -> None:
    published = WRITERS[name](tmp_path / "published")
    prepare(name, published, tmp_path / "out", settings=PrepareSettings())
    tasks = make_task_source(str(tmp_path / "out"), "train", families=(), weights=(), num_tasks=0, seed=0)
    kind = {"mask": "segmentation", "boxes": "grounding"}.get(tasks[0].task.answers_with, "vqa")
    assert walk(kind, tasks, tools) == []


def test_the_walk_would_find_a_leak(tools: ToolRunner) -> None:
    class Leaky(MedicalVQAEnv):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            observation, info = super().reset(seed=seed, options=options)
            assert self._episode is not None
            return observation, {**info, "hint": np.asarray(self._episode.reference.regions).tolist()}

    ENVS["leaky"] = Leaky
    try:
        tasks = make_task_source("pocket", "train", families=("structure",), weights=(), num_tasks=2, seed=0)
        assert walk("leaky", tasks, tools)
    finally:
        del ENVS["leaky"]
