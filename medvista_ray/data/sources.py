"""Where tasks come from: the demo set, its pocket part, a public data set that was prepared, or a user's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medvista_ray.data.demo import FAMILIES, DemoTaskSource
from medvista_ray.data.embedded import SOURCE as EMBEDDED
from medvista_ray.data.embedded import EmbeddedTaskSource
from medvista_ray.data.folder import TASKS_FILE, FolderTaskSource
from medvista_ray.data.manifest import Split
from medvista_ray.errors import ConfigError
from medvista_ray.types.protocols import TaskSource

DRAWN_SETS = ("demo", "pocket")  # seeded draws without an end; anything but these and `embedded` is a folder
_NUM_DRAWN = {"train": 1024, "held_out": 240}


def make_task_source(
    source: str, split: Split, *, families: Sequence[str], weights: Sequence[float], num_tasks: int, seed: int
) -> TaskSource:
    """Make the task source that `data.source` names: `demo`, `pocket`, a prepared public data set, or a folder.

    Args:
        source: `demo`, `pocket`, `vqa_rad`, `slake` …, or a folder with tasks.jsonl.
        split: which half.
        families: empty = every family of the source.
        weights: one share a family, for drawn sets; empty = equal.
        num_tasks: 0 = all of a folder or of the embedded set, 1,024 (training) or 240 (held out) of a drawn set.
        seed: of the draws; a folder and the embedded set have none.
    """
    if source in DRAWN_SETS:
        return DemoTaskSource(
            source,
            split,
            families=families or FAMILIES,
            weights=weights,
            num_tasks=num_tasks or _NUM_DRAWN[split],
            seed=seed,
        )
    from medvista_ray.data.public.catalog import PUBLIC_SETS, locate_prepared

    if source == EMBEDDED:
        return EmbeddedTaskSource(split, families=families, max_tasks=num_tasks)
    folder = Path(source)
    if source in PUBLIC_SETS and not (folder / TASKS_FILE).is_file():
        folder = locate_prepared(source)
    if not folder.is_dir():
        raise ConfigError(f"data.source: {source!r} is neither 'demo', 'pocket', a public data set nor a folder")
    return FolderTaskSource(folder, split, families=tuple(families), max_tasks=num_tasks)
