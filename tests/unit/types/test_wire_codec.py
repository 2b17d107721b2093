"""Every record survives the wire bit for bit; foreign, damaged and hostile bytes are refused with a reason."""

import math

import msgpack
import numpy as np
import pytest
from fuzz_cases import fuzz
from hypothesis import given, settings
from hypothesis import strategies as st

from medvista_ray.errors import WireError
from medvista_ray.types import wire, wire_schema
from medvista_ray.types.messages import Choice, ImagePart, ImageRef, Message, Task, TextPart, VolumeRef
from medvista_ray.types.samples import BatchShard, BatchTotals, make_training_sample
from medvista_ray.types.tool_calls import ToolCall, ToolFailure
from medvista_ray.types.trajectories import ImageSpan, StopReason, Trajectory, TrajectoryGroup, Turn, VersionSpan

texts = st.text(max_size=20)
ints = st.integers(0, 2**31 - 1)
floats = st.floats(width=32, allow_nan=False)
images = st.builds(
    ImageRef,
    digest=texts,
    width=st.integers(1, 4096),
    height=st.integers(1, 4096),
    mime=texts,
    spacing_mm=st.none() | st.tuples(floats, floats),
    modality=st.none() | texts,
)
parts = st.builds(TextPart, text=texts) | st.builds(ImagePart, image=images)
messages = st.builds(
    Message, role=st.sampled_from(["system", "user", "assistant", "tool"]), parts=st.lists(parts, max_size=3).map(tuple)
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
turns = st.builds(
    Turn,
    turn_index=ints,
    messages=st.lists(messages, max_size=2).map(tuple),
    action_start=ints,
    action_end=ints,
    action=texts,
    tool_call=st.none() | st.builds(ToolCall, name=texts, arguments=st.dictionaries(texts, json_values, max_size=3)),
    tool_failure=st.none() | st.sampled_from(ToolFailure),
)
sides = st.integers(1, 512)
volumes = st.builds(
    VolumeRef,
    digest=texts,
    shape=st.tuples(sides, sides, sides),
    spacing_mm=st.tuples(floats, floats, floats),
    modality=st.none() | texts,
)
tasks = st.builds(
    Task,
    task_id=texts,
    family=texts,
    question=texts,
    images=st.lists(images, max_size=2).map(tuple),
    volumes=st.lists(volumes, max_size=1).map(tuple),
    choices=st.lists(st.builds(Choice, choice_id=texts, text=texts), max_size=2).map(tuple),
    answer_kind=st.none() | st.sampled_from(["choice", "text", "number", "boxes", "mask", "list"]),
    unit=texts,
    headers=st.dictionaries(texts, st.dictionaries(texts, texts | st.integers(-99, 99), max_size=2), max_size=2),
    metadata=st.dictionaries(
        texts, texts | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.floats(allow_nan=False), max_size=4
    ),
)


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    rows = draw(st.lists(st.tuples(st.integers(-1, 2**31 - 1), st.booleans(), floats), max_size=40))
    return Trajectory(
        group_id=draw(texts),
        member=draw(ints),
        task_id=draw(texts),
        token_ids=np.array([row[0] for row in rows], np.int32),
        loss_mask=np.array([row[1] for row in rows], bool),
        logprobs=np.array([row[2] for row in rows], np.float32),
        image_spans=draw(st.lists(st.builds(ImageSpan, digest=texts, offset=ints, length=ints), max_size=2).map(tuple)),
        version_spans=draw(
            st.lists(st.builds(VersionSpan, policy_version=ints, start=ints, end=ints), max_size=2).map(tuple)
        ),
        turns=draw(st.lists(turns, max_size=2).map(tuple)),
        stop_reason=draw(st.sampled_from(StopReason)),
        reward=draw(floats),
        reward_breakdown=draw(st.dictionaries(texts, floats, max_size=3)),
        error=draw(st.none() | texts),
    )


ARRAYS = ("token_ids", "loss_mask", "logprobs", "advantages")


def assert_same(left: object, right: object) -> None:
    """Compare two records field by field, arrays by dtype and bytes."""
    assert type(left) is type(right)
    for name in type(left).__dataclass_fields__:
        one, other = getattr(left, name), getattr(right, name)
        if name in ARRAYS:
            assert one.dtype == other.dtype
            assert one.tobytes() == other.tobytes()
            assert not other.flags.writeable
        elif name in ("trajectories", "samples"):
            assert len(one) == len(other)
            for a, b in zip(one, other, strict=True):
                assert_same(a, b)
        else:
            assert one == other, name


def make_trajectory(num_tokens: int = 6) -> Trajectory:
    image = ImageRef(digest="ab" * 32, width=64, height=48, spacing_mm=(0.5, 0.5), modality="CT")
    mask = np.arange(num_tokens) >= num_tokens // 2
    return Trajectory(
        group_id="0/7/0",
        member=1,
        task_id="zoom-7",
        token_ids=np.arange(num_tokens, dtype=np.int32),
        loss_mask=mask,
        logprobs=np.where(mask, np.float32(-0.25), np.float32(0.0)).astype(np.float32),
        image_spans=(ImageSpan(digest=image.digest, offset=0, length=2),),
        version_spans=(VersionSpan(policy_version=3, start=num_tokens // 2, end=num_tokens),),
        turns=(
            Turn(
                turn_index=0,
                messages=(Message(role="user", parts=(ImagePart(image=image), TextPart(text="Which letter?"))),),
                action_start=num_tokens // 2,
                action_end=num_tokens,
                action="<answer>A</answer>",
                tool_call=ToolCall(name="zoom", arguments={"box": [0, 0, 10, 10]}),
            ),
        ),
        reward=1.5,
        reward_breakdown={"answer": 1.0, "format": 0.5},
    )


def make_group() -> TrajectoryGroup:
    task = Task(task_id="zoom-7", family="zoom", question="Which letter?", images=(), metadata={"modality": "CT"})
    return TrajectoryGroup(
        group_id="0/7/0", attempt=2, incarnation=1, task=task, trajectories=(make_trajectory(), make_trajectory(9))
    )


@settings(max_examples=100, deadline=None)
@given(trajectories())
def test_trajectory_round_trip(trajectory: Trajectory) -> None:
    assert_same(trajectory, wire.decode_trajectory(wire.encode_trajectory(trajectory)))


@settings(max_examples=40, deadline=None)
@given(
    st.builds(
        TrajectoryGroup,
        group_id=texts,
        attempt=ints,
        incarnation=ints,
        task=tasks,
        trajectories=st.lists(trajectories(), max_size=2).map(tuple),
    )
)
def test_group_round_trip(group: TrajectoryGroup) -> None:
    data = wire.encode_group(group)
    assert_same(group, wire.decode_group(data))
    assert wire.encode_group(wire.decode_group(data)) == data


@settings(max_examples=40, deadline=None)
@given(st.lists(trajectories(), max_size=3), floats)
def test_shard_round_trip(members: list[Trajectory], advantage: float) -> None:
    samples = tuple(make_training_sample(member, advantage) for member in members)
    totals = BatchTotals(num_groups=4, num_samples=32, num_action_tokens=999)
    shard = BatchShard(lease_id="lease-1", rank=1, world_size=2, train_from_version=5, samples=samples, totals=totals)
    assert_same(shard, wire.decode_shard(wire.encode_shard(shard)))


def test_schema_version_is_the_first_field() -> None:
    first = next(iter(msgpack.unpackb(wire.encode_trajectory(make_trajectory()))))
    assert first == "schema_version"


def test_the_plain_msgpack_package_reads_a_group() -> None:
    record = msgpack.unpackb(wire.encode_group(make_group()))
    assert record["schema_version"] == 1
    assert record["kind"] == "trajectory_group"
    member = record["body"]["trajectories"][0]
    tokens = member["token_ids"]
    assert np.frombuffer(tokens["data"], tokens["dtype"]).reshape(tokens["shape"]).tolist() == [0, 1, 2, 3, 4, 5]
    mask = member["loss_mask"]
    assert np.frombuffer(mask["data"], mask["dtype"]).tolist() == [False, False, False, True, True, True]
    assert member["turns"][0]["messages"][0]["parts"][0]["image"]["digest"] == "ab" * 32


def test_odd_tool_arguments_survive() -> None:
    call = ToolCall(name="z\ud800", arguments={"x": 10**30, "y": "\udfff", "z": math.inf})
    turn = Turn(turn_index=0, messages=(), action_start=0, action_end=0, action="\ud800!", tool_call=call)
    trajectory = Trajectory(
        group_id="0/0/0",
        member=0,
        task_id="t",
        token_ids=np.zeros(0, np.int32),
        loss_mask=np.zeros(0, bool),
        logprobs=np.zeros(0, np.float32),
        turns=(turn,),
    )
    decoded = wire.decode_trajectory(wire.encode_trajectory(trajectory)).turns[0]
    assert decoded.tool_call == call
    assert decoded.action == "?!"  # a lone surrogate has no UTF-8 form


def test_non_finite_logprobs_keep_their_bits() -> None:
    values = np.array([np.nan, -np.inf, -0.0], np.float32)
    trajectory = Trajectory(
        group_id="g",
        member=0,
        task_id="t",
        token_ids=np.zeros(3, np.int32),
        loss_mask=np.ones(3, bool),
        logprobs=values,
    )
    assert wire.decode_trajectory(wire.encode_trajectory(trajectory)).logprobs.tobytes() == values.tobytes()


def test_an_array_of_another_dtype_is_refused_before_it_is_written() -> None:
    trajectory = Trajectory(
        group_id="g",
        member=0,
        task_id="t",
        token_ids=np.zeros(3, np.int64),
        loss_mask=np.ones(3, bool),
        logprobs=np.zeros(3, np.float32),
    )
    with pytest.raises(WireError, match="token_ids must be int32, got int64"):
        wire.encode_trajectory(trajectory)


def change(data: bytes, **fields: object) -> bytes:
    return msgpack.packb({**msgpack.unpackb(data), **fields})


def change_body(**fields: object) -> bytes:
    record = msgpack.unpackb(wire.encode_trajectory(make_trajectory()))
    record["body"].update(fields)
    return msgpack.packb(record)


def test_unknown_version_is_refused_by_number() -> None:
    data = change(wire.encode_group(make_group()), schema_version=2, body="a future shape")
    with pytest.raises(WireError, match="schema_version 2 is not known here, only 1"):
        wire.decode_group(data)


def test_another_kind_is_refused_by_name() -> None:
    with pytest.raises(WireError, match="'trajectory_group', got 'trajectory'"):
        wire.decode_group(wire.encode_trajectory(make_trajectory()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"token_ids": {"dtype": "<i4", "shape": [3], "data": b"\0" * 8}}, "8 bytes do not fit"),
        ({"token_ids": {"dtype": "<i4", "shape": [-2], "data": b""}}, "do not fit"),
        ({"token_ids": {"dtype": "<i4", "shape": [1, 1], "data": b"\0" * 4}}, "do not fit"),
        ({"token_ids": {"dtype": "|O", "shape": [1], "data": b"\0" * 8}}, "expected an array of dtype '<i4'"),
        ({"loss_mask": {"dtype": "|b1", "shape": [6], "data": b"\x02" * 6}}, "other than 0 and 1"),
        ({"logprobs": {"dtype": "<f4", "shape": [1], "data": b"\0" * 4}}, "unequal shapes"),
        ({"stop_reason": "tired"}, "tired"),
        ({"reward": "high"}, "float"),
        ({"member": None}, "int"),
    ],
)
def test_wrong_fields_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(WireError, match=message):
        wire.decode_trajectory(change_body(**fields))


def test_bytes_that_are_no_record_are_refused() -> None:
    for data in (b"", b"\x80", b"\xc1", b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", b"\x80\x04\x95pickle"):
        with pytest.raises(WireError):
            wire.decode_group(data)


@fuzz
@given(st.data())
def test_fuzzed_bytes_give_a_record_or_a_wire_error(data: st.DataObject) -> None:
    good = bytearray(wire.encode_group(make_group()))
    for _ in range(data.draw(st.integers(1, 6))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(good[: data.draw(st.integers(0, len(good)))] if data.draw(st.booleans()) else good)
    try:
        group = wire.decode_group(damaged)
    except WireError:
        return
    assert isinstance(group, TrajectoryGroup)


def test_references_have_no_codec() -> None:
    names = [*dir(wire), *dir(wire_schema)]
    assert "Message" in names
    assert not [name for name in names if "reference" in name.lower()]
