"""What is in a task source: counts, sizes, modalities, answers of the training half, and what both halves share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from medvista_ray.data.manifest import Split
from medvista_ray.types.messages import ImageRef, Reference, Task, VolumeRef
from medvista_ray.types.protocols import TaskSource

MAX_DISTINCT = 10_000  # answers of a family that are told apart
Report = Callable[[int, int], None]


@dataclass(slots=True, kw_only=True)
class SplitStatistics:
    """Counts over one split; grows by `add`."""

    num_tasks: int = 0
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)  # (family, answer kind)
    languages: Counter[str] = field(default_factory=Counter)
    modalities: Counter[str] = field(default_factory=Counter)  # of distinct images and volumes
    sizes: Counter[str] = field(default_factory=Counter)  # "W x H", of distinct images
    num_volumes: int = 0
    num_bytes: int = 0  # of distinct images and volumes
    digests: set[str] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)
    answers: dict[str, Counter[str]] = field(default_factory=dict)  # by family

    def add(self, task: Task, blobs: Mapping[str, bytes]) -> None:
        """Count a task."""
        self.num_tasks += 1
        self.kinds[task.family, task.answers_with] += 1
        self.languages["chinese" if any("\u4e00" <= letter <= "\u9fff" for letter in task.question) else "other"] += 1
        self.sources.add(str(task.metadata.get("source", "")))
        refs: tuple[ImageRef | VolumeRef, ...] = (*task.images, *task.volumes)
        new = {ref.digest: ref for ref in refs if ref.digest not in self.digests}
        for digest, ref in new.items():
            self.digests.add(digest)
            self.modalities[ref.modality or "not said"] += 1
            self.num_bytes += len(blobs[digest])
            if isinstance(ref, ImageRef):
                self.sizes[f"{ref.width} x {ref.height}"] += 1
            else:
                self.num_volumes += 1

    def add_answer(self, task: Task, reference: Reference) -> None:
        """Count an answer; what is beyond the cap counts as "…"."""
        answers = self.answers.setdefault(task.family, Counter())
        text = describe_answer(task, reference)
        answers[text if text in answers or len(answers) < MAX_DISTINCT else "…"] += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Both splits, and what is in both of them."""

    splits: Mapping[Split, SplitStatistics]

    @property
    def num_shared_images(self) -> int:
        """Count the images that are in both splits: a leak."""
        found = [split.digests for split in self.splits.values()]
        return len(set.intersection(*found)) if len(found) == 2 else 0

    @property
    def num_shared_sources(self) -> int:
        """Count the sources (patients, where they are named) that are in both splits."""
        found = [split.sources - {""} for split in self.splits.values()]
        return len(set.intersection(*found)) if len(found) == 2 else 0


def describe_answer(task: Task, reference: Reference) -> str:
    """Say an answer in a few words: its text, or how much there is to find."""
    kind = task.answers_with
    if kind == "boxes":
        return f"{len(reference.boxes)} box{'es' if len(reference.boxes) != 1 else ''}"
    if kind == "mask":
        return "a mask"
    return ", ".join(reference.items) if kind == "list" else reference.answer


def collect_statistics(
    sources: Mapping[Split, TaskSource], *, limit: int = 0, report: Report = lambda done, total: None
) -> Statistics:
    """Read the tasks of each split, from the first on.

    Args:
        sources: by split.
        limit: how many of each; 0 = all.
        report: called with (tasks done, tasks in all).
    """
    counts = {split: min(limit, len(source)) if limit else len(source) for split, source in sources.items()}
    total, done = sum(counts.values()), 0
    splits: dict[Split, SplitStatistics] = {}
    for split, source in sources.items():
        collected = splits[split] = SplitStatistics()
        for index in range(counts[split]):
            record = source[index]
            collected.add(record.task, record.blobs)
            if split == "train":  # labels of held-out tasks stay unseen
                collected.add_answer(record.task, record.reference)
            done += 1
            report(done, total)
    return Statistics(splits=splits)
