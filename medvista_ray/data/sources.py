"""Where tasks come from: the demo set, its pocket part that needs no extra package, or a user's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medvista_ray.data.demo import DemoTaskSource
from medvista_ray.data.folder import FolderTaskSource
from medvista_ray.data.manifest import Split
from medvista_ray.errors import ConfigError
from medvista_ray.types.protocols import TaskSource


def make_task_source(
    source: str, split: Split, *, families: Sequence[str], weights: Sequence[float], num_tasks: int, seed: int
) -> TaskSource:
    """Make the task source that `data.source` names: `demo`, `pocket`, or a folder with tasks.jsonl."""
    if source in ("demo", "pocket"):
        return DemoTaskSource(source, split, families=families, weights=weights, num_tasks=num_tasks, seed=seed)
    folder = Path(source)
    if not folder.is_dir():
        raise ConfigError(f"data.source: {source!r} is neither 'demo', 'pocket' nor a folder")
    return FolderTaskSource(folder, split)
