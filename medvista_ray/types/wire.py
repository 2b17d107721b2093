"""The one codec: records <-> msgpack through the structs of `wire_schema`, and the frames that hold them in a file.

Knows nothing of files, HTTP or journals. `Reference` has no codec on purpose: what only rewards see never leaves its
shard.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar

import msgspec
import numpy as np

from medvista_ray.errors import WireError
from medvista_ray.types.frames import cut_torn_tail, iter_frames, write_frame
from medvista_ray.types.messages import Choice, ImagePart, ImageRef, Message, Task, TextPart, VolumeRef
from medvista_ray.types.samples import BatchShard, BatchTotals, TrainingSample
from medvista_ray.types.tool_calls import ToolCall
from medvista_ray.types.trajectories import ImageSpan, Trajectory, TrajectoryGroup, Turn, VersionSpan
from medvista_ray.types.wire_schema import (
    BOOL,
    FLOAT32,
    INT32,
    SCHEMA_VERSION,
    ArrayWire,
    ChoiceWire,
    GroupRecord,
    GroupWire,
    Head,
    ImagePartWire,
    ImageRefWire,
    ImageSpanWire,
    MessageWire,
    SampleWire,
    ShardRecord,
    ShardWire,
    TaskWire,
    TextPartWire,
    TrajectoryRecord,
    TrajectoryWire,
    TurnWire,
    VersionSpanWire,
    VolumeRefWire,
)

__all__ = [
    "SCHEMA_VERSION",
    "cut_torn_tail",
    "decode_group",
    "decode_shard",
    "decode_trajectory",
    "encode_group",
    "encode_shard",
    "encode_trajectory",
    "iter_frames",
    "write_frame",
]


AnyRecord = TypeVar("AnyRecord", TrajectoryRecord, GroupRecord, ShardRecord)
Decoded = TypeVar("Decoded")


# --- the public codec
def encode_trajectory(trajectory: Trajectory) -> bytes:
    """Write one trajectory as msgpack bytes."""
    return _encode(TrajectoryRecord(SCHEMA_VERSION, "trajectory", _trajectory_to_wire(trajectory)))


def decode_trajectory(data: bytes) -> Trajectory:
    """Read one trajectory; its arrays are read-only. `WireError` says what is wrong with the bytes."""
    return _decode(data, "trajectory", TrajectoryRecord, lambda record: _trajectory_from_wire(record.body))


def encode_group(group: TrajectoryGroup) -> bytes:
    """Write one group as msgpack bytes."""
    body = GroupWire(
        group.group_id,
        int(group.attempt),
        int(group.incarnation),
        _task_to_wire(group.task),
        [_trajectory_to_wire(member) for member in group.trajectories],
    )
    return _encode(GroupRecord(SCHEMA_VERSION, "trajectory_group", body))


def decode_group(data: bytes) -> TrajectoryGroup:
    """Read one group; its arrays are read-only. `WireError` says what is wrong with the bytes."""
    return _decode(data, "trajectory_group", GroupRecord, lambda record: _group_from_wire(record.body))


def encode_shard(shard: BatchShard) -> bytes:
    """Write one rank's part of a batch as msgpack bytes."""
    totals = shard.totals
    body = ShardWire(
        shard.lease_id,
        shard.rank,
        shard.world_size,
        shard.train_from_version,
        [_sample_to_wire(sample) for sample in shard.samples],
        int(totals.num_groups),
        int(totals.num_samples),
        int(totals.num_action_tokens),
    )
    return _encode(ShardRecord(SCHEMA_VERSION, "batch_shard", body))


def decode_shard(data: bytes) -> BatchShard:
    """Read one rank's part of a batch; its arrays are read-only. `WireError` says what is wrong with the bytes."""
    return _decode(data, "batch_shard", ShardRecord, lambda record: _shard_from_wire(record.body))


# --- records -> structs
def _encode(record: msgspec.Struct) -> bytes:
    try:
        return msgspec.msgpack.encode(record)
    except (TypeError, OverflowError, UnicodeEncodeError) as error:
        raise WireError(f"{type(record).__name__} cannot be written: {error}") from error


def _array_to_wire(values: np.ndarray, dtype: str, name: str) -> ArrayWire:
    if values.dtype != np.dtype(dtype):
        raise WireError(f"{name} must be {np.dtype(dtype).name}, got {values.dtype.name}")
    return ArrayWire(dtype, list(values.shape), np.ascontiguousarray(values, dtype=dtype).tobytes())


def _image_to_wire(image: ImageRef) -> ImageRefWire:
    return ImageRefWire(image.digest, image.width, image.height, image.mime, image.spacing_mm, image.modality)


def _message_to_wire(message: Message) -> MessageWire:
    return MessageWire(
        message.role,
        [
            TextPartWire(_clean(part.text)) if isinstance(part, TextPart) else ImagePartWire(_image_to_wire(part.image))
            for part in message.parts
        ],
    )


def _clean(text: str) -> str:
    """Replace lone surrogates, which have no UTF-8 form."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _task_to_wire(task: Task) -> TaskWire:
    return TaskWire(
        task.task_id,
        task.family,
        task.question,
        [_image_to_wire(image) for image in task.images],
        [VolumeRefWire(ref.digest, ref.shape, ref.spacing_mm, ref.modality) for ref in task.volumes],
        [ChoiceWire(choice.choice_id, choice.text) for choice in task.choices],
        task.answer_kind,
        task.unit,
        {digest: dict(header) for digest, header in task.headers.items()},
        dict(task.metadata),
    )


def _spans_to_wire(
    images: tuple[ImageSpan, ...], versions: tuple[VersionSpan, ...]
) -> tuple[list[ImageSpanWire], list[VersionSpanWire]]:
    return (
        [ImageSpanWire(span.digest, int(span.offset), int(span.length)) for span in images],
        [VersionSpanWire(int(span.policy_version), int(span.start), int(span.end)) for span in versions],
    )


def _turn_to_wire(turn: Turn) -> TurnWire:
    call = turn.tool_call
    return TurnWire(
        turn.turn_index,
        [_message_to_wire(message) for message in turn.messages],
        int(turn.action_start),
        int(turn.action_end),
        _clean(turn.action),
        None if call is None else json.dumps({"name": call.name, "arguments": dict(call.arguments)}),
        turn.tool_failure,
    )


def _trajectory_to_wire(trajectory: Trajectory) -> TrajectoryWire:
    return TrajectoryWire(
        trajectory.group_id,
        int(trajectory.member),
        trajectory.task_id,
        _array_to_wire(trajectory.token_ids, INT32, "token_ids"),
        _array_to_wire(trajectory.loss_mask, BOOL, "loss_mask"),
        _array_to_wire(trajectory.logprobs, FLOAT32, "logprobs"),
        *_spans_to_wire(trajectory.image_spans, trajectory.version_spans),
        [_turn_to_wire(turn) for turn in trajectory.turns],
        trajectory.stop_reason,
        float(trajectory.reward),
        {name: float(value) for name, value in trajectory.reward_breakdown.items()},
        None if trajectory.error is None else _clean(trajectory.error),
    )


def _sample_to_wire(sample: TrainingSample) -> SampleWire:
    return SampleWire(
        sample.group_id,
        int(sample.member),
        _array_to_wire(sample.token_ids, INT32, "token_ids"),
        _array_to_wire(sample.loss_mask, BOOL, "loss_mask"),
        _array_to_wire(sample.logprobs, FLOAT32, "logprobs"),
        _array_to_wire(sample.advantages, FLOAT32, "advantages"),
        *_spans_to_wire(sample.image_spans, sample.version_spans),
        float(sample.reward),
    )


# --- structs -> records
def _decode(data: bytes, kind: str, record: type[AnyRecord], build: Callable[[AnyRecord], Decoded]) -> Decoded:
    """Check version and kind before anything else, then the whole record."""
    try:
        head = msgspec.msgpack.decode(data, type=Head)
        if head.schema_version != SCHEMA_VERSION:
            raise WireError(f"schema_version {head.schema_version} is not known here, only {SCHEMA_VERSION}")
        if head.kind != kind:
            raise WireError(f"expected a record of kind {kind!r}, got {head.kind!r}")
        return build(msgspec.msgpack.decode(data, type=record))
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise WireError(f"not a record of kind {kind!r}: {error}") from error


def _array_from_wire(array: ArrayWire, dtype: str) -> np.ndarray:
    if array.dtype != dtype:
        raise WireError(f"expected an array of dtype {dtype!r}, got {array.dtype!r}")
    if len(array.shape) != 1 or array.shape[0] * np.dtype(dtype).itemsize != len(array.data):
        raise WireError(f"{len(array.data)} bytes do not fit an array of dtype {dtype!r} and shape {array.shape}")
    values = np.frombuffer(array.data, dtype=dtype)
    if dtype == BOOL and values.size and values.view(np.uint8).max() > 1:
        raise WireError("a boolean array holds a byte other than 0 and 1")
    return values.astype(np.dtype(dtype).newbyteorder("="), copy=False)


def _image_from_wire(image: ImageRefWire) -> ImageRef:
    return ImageRef(
        digest=image.digest,
        width=image.width,
        height=image.height,
        mime=image.mime,
        spacing_mm=image.spacing_mm,
        modality=image.modality,
    )


def _message_from_wire(message: MessageWire) -> Message:
    parts = tuple(
        TextPart(text=part.text) if isinstance(part, TextPartWire) else ImagePart(image=_image_from_wire(part.image))
        for part in message.parts
    )
    return Message(role=message.role, parts=parts)


def _call_from_json(text: str) -> ToolCall:
    value = json.loads(text)
    if not isinstance(value, dict) or not isinstance(value.get("arguments"), dict) or "name" not in value:
        raise WireError("tool_call_json is no object with `name` and `arguments`")
    return ToolCall(name=str(value["name"]), arguments=value["arguments"])


def _turn_from_wire(turn: TurnWire) -> Turn:
    return Turn(
        turn_index=turn.turn_index,
        messages=tuple(_message_from_wire(message) for message in turn.messages),
        action_start=turn.action_start,
        action_end=turn.action_end,
        action=turn.action,
        tool_call=None if turn.tool_call_json is None else _call_from_json(turn.tool_call_json),
        tool_failure=turn.tool_failure,
    )


def _image_spans(spans: list[ImageSpanWire]) -> tuple[ImageSpan, ...]:
    return tuple(ImageSpan(digest=span.digest, offset=span.offset, length=span.length) for span in spans)


def _version_spans(spans: list[VersionSpanWire]) -> tuple[VersionSpan, ...]:
    return tuple(VersionSpan(policy_version=span.policy_version, start=span.start, end=span.end) for span in spans)


def _task_from_wire(task: TaskWire) -> Task:
    return Task(
        task_id=task.task_id,
        family=task.family,
        question=task.question,
        images=tuple(_image_from_wire(image) for image in task.images),
        volumes=tuple(
            VolumeRef(digest=ref.digest, shape=ref.shape, spacing_mm=ref.spacing_mm, modality=ref.modality)
            for ref in task.volumes
        ),
        choices=tuple(Choice(choice_id=choice.choice_id, text=choice.text) for choice in task.choices),
        answer_kind=task.answer_kind,
        unit=task.unit,
        headers=task.headers,
        metadata=task.metadata,
    )


def _trajectory_from_wire(wire: TrajectoryWire) -> Trajectory:
    return Trajectory(
        group_id=wire.group_id,
        member=wire.member,
        task_id=wire.task_id,
        token_ids=_array_from_wire(wire.token_ids, INT32),
        loss_mask=_array_from_wire(wire.loss_mask, BOOL),
        logprobs=_array_from_wire(wire.logprobs, FLOAT32),
        image_spans=_image_spans(wire.image_spans),
        version_spans=_version_spans(wire.version_spans),
        turns=tuple(_turn_from_wire(turn) for turn in wire.turns),
        stop_reason=wire.stop_reason,
        reward=wire.reward,
        reward_breakdown=wire.reward_breakdown,
        error=wire.error,
    )


def _group_from_wire(wire: GroupWire) -> TrajectoryGroup:
    return TrajectoryGroup(
        group_id=wire.group_id,
        attempt=wire.attempt,
        incarnation=wire.incarnation,
        task=_task_from_wire(wire.task),
        trajectories=tuple(_trajectory_from_wire(member) for member in wire.trajectories),
    )


def _sample_from_wire(wire: SampleWire) -> TrainingSample:
    return TrainingSample(
        group_id=wire.group_id,
        member=wire.member,
        token_ids=_array_from_wire(wire.token_ids, INT32),
        loss_mask=_array_from_wire(wire.loss_mask, BOOL),
        logprobs=_array_from_wire(wire.logprobs, FLOAT32),
        advantages=_array_from_wire(wire.advantages, FLOAT32),
        image_spans=_image_spans(wire.image_spans),
        version_spans=_version_spans(wire.version_spans),
        reward=wire.reward,
    )


def _shard_from_wire(wire: ShardWire) -> BatchShard:
    return BatchShard(
        lease_id=wire.lease_id,
        rank=wire.rank,
        world_size=wire.world_size,
        train_from_version=wire.train_from_version,
        samples=tuple(_sample_from_wire(sample) for sample in wire.samples),
        totals=BatchTotals(
            num_groups=wire.num_groups, num_samples=wire.num_samples, num_action_tokens=wire.num_action_tokens
        ),
    )
