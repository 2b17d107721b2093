"""Run held-out episodes: k samples of every item, or one greedy one. Knows a policy client; not which engine it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from medvista_ray.evaluation.outcomes import EpisodeOutcome, make_outcome
from medvista_ray.rollout.env_factory import EnvFactory
from medvista_ray.rollout.episode import EpisodeRunner
from medvista_ray.rollout.group import EpisodeCount, run_group
from medvista_ray.types.delivery import GroupWork
from medvista_ray.types.protocols import BlobStore, TaskSource
from medvista_ray.types.trajectories import TrajectoryGroup, format_group_id

GroupSink = Callable[[TrajectoryGroup], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvaluationParts:
    """What episodes run on."""

    runner: EpisodeRunner
    factory: EnvFactory
    blobs: BlobStore
    live: EpisodeCount = field(default_factory=EpisodeCount)


async def evaluate_tasks(
    tasks: TaskSource,
    *,
    parts: EvaluationParts,
    samples_per_item: int,
    greedy: bool,
    max_concurrent: int,
    epoch: int = 0,
    on_group: GroupSink = lambda group: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[EpisodeOutcome]:
    """Run every item; outcomes in order of items, then members.

    Args:
        tasks: held-out items.
        parts: what episodes run on; its runner decides the temperature, `greedy` only labels it.
        samples_per_item: members of one group.
        greedy: recorded with each outcome.
        max_concurrent: episodes at once.
        epoch: first part of the group id, so that families do not share draws.
        on_group: sees every finished group.
        on_progress: items done, items in all.
    """
    slots = asyncio.Semaphore(max(1, max_concurrent // samples_per_item))
    results: list[list[EpisodeOutcome]] = [[] for _ in range(len(tasks))]
    done = 0

    async def run_item(index: int) -> None:
        nonlocal done
        async with slots:
            record = tasks[index]
            for digest, data in record.blobs.items():
                await parts.blobs.put_if_absent(digest, data)
            work = GroupWork(
                task=record.task,
                reference=record.reference,
                group_id=format_group_id(epoch, index, 0),
                attempt=0,
                incarnation=0,
                group_size=samples_per_item,
            )
            group = await run_group(
                work,
                runner=parts.runner,
                make_env=parts.factory.make,
                blobs=parts.blobs,
                cache=parts.factory.cache,
                live=parts.live,
            )
        on_group(group)
        source = str(record.task.metadata.get("source", ""))
        results[index] = [
            make_outcome(member, record.task, source=source, greedy=greedy) for member in group.trajectories
        ]
        done += 1
        on_progress(done, len(tasks))

    await _run_all(run_item, len(tasks))
    return [outcome for outcomes in results for outcome in outcomes]


async def _run_all(run_item: Callable[[int], Coroutine[Any, Any, None]], count: int) -> None:
    """Run every item; the first error ends the others and arrives with its own type."""
    try:
        async with asyncio.TaskGroup() as items:
            for index in range(count):
                items.create_task(run_item(index), name=f"evaluate {index}")
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
