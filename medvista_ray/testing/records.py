"""Builders of small valid records: tasks, trajectories, groups. Know the records, not where they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from medvista_ray.types.messages import Choice, ImageRef, Message, Reference, Task, TextPart
from medvista_ray.types.protocols import TaskRecord
from medvista_ray.types.trajectories import StopReason, Trajectory, TrajectoryGroup, Turn, VersionSpan

_PROMPT, _ACTION = (11, 12, 13), (21, 22)


def make_task(task_id: str = "t-0", *, family: str = "structure", images: Sequence[ImageRef] = ()) -> Task:
    """Return a closed question with two choices."""
    return Task(
        task_id=task_id,
        family=family,
        question="Which plane is this?",
        images=tuple(images),
        choices=(Choice(choice_id="A", text="axial"), Choice(choice_id="B", text="coronal")),
    )


def make_task_record(index: int, *, family: str = "structure", blob: bytes | None = None) -> TaskRecord:
    """Return a task with its reference and one source image, whose bytes are any bytes."""
    data = blob if blob is not None else f"image {index}".encode()
    digest = hashlib.sha256(data).hexdigest()
    task = make_task(f"t-{index}", family=family, images=(ImageRef(digest=digest, width=4, height=4),))
    return TaskRecord(task=task, reference=Reference(task_id=task.task_id, answer="A"), blobs={digest: data})


class ListTaskSource:
    """Tasks in a list; raises what stands in it instead of a task."""

    def __init__(self, records: Sequence[TaskRecord | Exception]) -> None:
        self._records = list(records)

    @classmethod
    def of_length(cls, num_tasks: int) -> ListTaskSource:
        """Return that many small tasks."""
        return cls([make_task_record(index) for index in range(num_tasks)])

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> TaskRecord:
        record = self._records[index]
        if isinstance(record, Exception):
            raise record
        return record


def make_trajectory(
    *,
    group_id: str = "0/0/0",
    member: int = 0,
    task_id: str = "t-0",
    reward: float = 0.0,
    policy_version: int = 0,
    stop_reason: StopReason = StopReason.ANSWERED,
    error: str | None = None,
) -> Trajectory:
    """Return one turn: three tokens of a prompt, two sampled ones; a broken one needs `error`."""
    tokens = np.array(_PROMPT + _ACTION, np.int32)
    mask = np.array([False] * len(_PROMPT) + [True] * len(_ACTION))
    start, end = len(_PROMPT), len(tokens)
    question = Message(role="user", parts=(TextPart(text="Which plane is this?"),))
    return Trajectory(
        group_id=group_id,
        member=member,
        task_id=task_id,
        token_ids=tokens,
        loss_mask=mask,
        logprobs=np.where(mask, np.float32(-0.5), np.float32(0.0)),
        version_spans=(VersionSpan(policy_version=policy_version, start=start, end=end),),
        turns=(
            Turn(
                turn_index=0,
                messages=(question,),
                action_start=start,
                action_end=end,
                action="<answer>A</answer>",
            ),
        ),
        stop_reason=StopReason.BROKEN if error is not None else stop_reason,
        reward=0.0 if error is not None else reward,
        reward_breakdown={} if error is not None else {"answer": reward},
        error=error,
    )


def make_group(
    group_id: str = "0/0/0",
    *,
    rewards: Sequence[float | None] = (0.0, 1.0),
    attempt: int = 0,
    incarnation: int = 0,
    policy_version: int = 0,
    task: Task | None = None,
) -> TrajectoryGroup:
    """Return a group with one trajectory for each reward; None makes a broken member."""
    task = task or make_task()
    trajectories = tuple(
        make_trajectory(
            group_id=group_id,
            member=member,
            task_id=task.task_id,
            reward=0.0 if reward is None else reward,
            policy_version=policy_version,
            error="RenderError: scripted" if reward is None else None,
        )
        for member, reward in enumerate(rewards)
    )
    return TrajectoryGroup(
        group_id=group_id, attempt=attempt, incarnation=incarnation, task=task, trajectories=trajectories
    )
