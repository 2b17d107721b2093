"""What stands on the wire: the names, the order and the types of every field, as msgspec structs.

Every record starts with `schema_version`; arrays are raw little-endian bytes with dtype and shape, so that any msgpack
library reads them. Knows no conversion. `Reference` has no struct here on purpose: what only rewards see never leaves
its shard.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from medvista_ray.types.messages import AnswerKind, Role
from medvista_ray.types.tool_calls import ToolFailure
from medvista_ray.types.trajectories import StopReason

SCHEMA_VERSION = 1
INT32, FLOAT32, BOOL = "<i4", "<f4", "|b1"  # the dtypes of arrays


class ArrayWire(msgspec.Struct, frozen=True):
    """One array: numpy dtype string, shape, raw little-endian bytes in C order."""

    dtype: str
    shape: list[int]
    data: bytes


class ImageRefWire(msgspec.Struct, frozen=True):
    """See `ImageRef`."""

    digest: str
    width: int
    height: int
    mime: str
    spacing_mm: tuple[float, float] | None
    modality: str | None


class TextPartWire(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """See `TextPart`."""

    text: str


class ImagePartWire(msgspec.Struct, frozen=True, tag_field="type", tag="image"):
    """See `ImagePart`."""

    image: ImageRefWire


class MessageWire(msgspec.Struct, frozen=True):
    """See `Message`."""

    role: Role
    parts: list[TextPartWire | ImagePartWire]


class ChoiceWire(msgspec.Struct, frozen=True):
    """See `Choice`."""

    choice_id: str
    text: str


class VolumeRefWire(msgspec.Struct, frozen=True):
    """See `VolumeRef`."""

    digest: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    modality: str | None


class TaskWire(msgspec.Struct, frozen=True):
    """See `Task`."""

    task_id: str
    family: str
    question: str
    images: list[ImageRefWire]
    volumes: list[VolumeRefWire]
    choices: list[ChoiceWire]
    answer_kind: AnswerKind | None
    unit: str
    headers: dict[str, dict[str, str | int | float]]
    metadata: dict[str, str | int | float | bool]


class ImageSpanWire(msgspec.Struct, frozen=True):
    """See `ImageSpan`."""

    digest: str
    offset: int
    length: int


class VersionSpanWire(msgspec.Struct, frozen=True):
    """See `VersionSpan`."""

    policy_version: int
    start: int
    end: int


class TurnWire(msgspec.Struct, frozen=True):
    """See `Turn`. The call is JSON text: a model may write integers and strings that msgpack has no form for."""

    turn_index: int
    messages: list[MessageWire]
    action_start: int
    action_end: int
    action: str
    tool_call_json: str | None  # {"name": …, "arguments": {…}}
    tool_failure: ToolFailure | None


class TrajectoryWire(msgspec.Struct, frozen=True):
    """See `Trajectory`."""

    group_id: str
    member: int
    task_id: str
    token_ids: ArrayWire
    loss_mask: ArrayWire
    logprobs: ArrayWire
    image_spans: list[ImageSpanWire]
    version_spans: list[VersionSpanWire]
    turns: list[TurnWire]
    stop_reason: StopReason
    reward: float
    reward_breakdown: dict[str, float]
    error: str | None


class GroupWire(msgspec.Struct, frozen=True):
    """See `TrajectoryGroup`."""

    group_id: str
    attempt: int
    incarnation: int
    task: TaskWire
    trajectories: list[TrajectoryWire]


class SampleWire(msgspec.Struct, frozen=True):
    """See `TrainingSample`."""

    group_id: str
    member: int
    token_ids: ArrayWire
    loss_mask: ArrayWire
    logprobs: ArrayWire
    advantages: ArrayWire
    image_spans: list[ImageSpanWire]
    version_spans: list[VersionSpanWire]
    reward: float


class ShardWire(msgspec.Struct, frozen=True):
    """See `BatchShard`; the totals of the whole batch stand beside the samples of one rank."""

    lease_id: str
    rank: int
    world_size: int
    train_from_version: int
    samples: list[SampleWire]
    num_groups: int
    num_samples: int
    num_action_tokens: int


class Head(msgspec.Struct, frozen=True):
    """What every record starts with; read alone before the rest is."""

    schema_version: int
    kind: str


class TrajectoryRecord(msgspec.Struct, frozen=True):
    """One trajectory as it is written."""

    schema_version: int
    kind: Literal["trajectory"]
    body: TrajectoryWire


class GroupRecord(msgspec.Struct, frozen=True):
    """One group as it is written."""

    schema_version: int
    kind: Literal["trajectory_group"]
    body: GroupWire


class ShardRecord(msgspec.Struct, frozen=True):
    """One rank's part of a batch as it is written."""

    schema_version: int
    kind: Literal["batch_shard"]
    body: ShardWire
