"""A recording survives kills and resumes, keeps its bounds, and has the bytes of every image it shows."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from medvista_ray.config.schema import RunConfig
from medvista_ray.errors import BlobMissingError, WireError
from medvista_ray.runs.directory import RunDirectory
from medvista_ray.runs.trajectories import TrajectoryRecorder, blob_path, read_blob, read_trajectories
from medvista_ray.types.messages import ImagePart, ImageRef, Message, Task, TextPart
from medvista_ray.types.trajectories import Trajectory, TrajectoryGroup, Turn
from medvista_ray.types.wire import encode_group

SOURCE = ImageRef(digest="f" * 64, width=512, height=512, mime="application/x-npy")  # never shown


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", RunConfig(), command="train")


def make_group(index: int, *, size: int = 2) -> tuple[TrajectoryGroup, dict[str, bytes]]:
    data = f"image {index}".encode()
    image = ImageRef(digest=hashlib.sha256(data).hexdigest(), width=8, height=8)
    message = Message(role="user", parts=(ImagePart(image=image), TextPart(text="Which letter, é?")))
    turn = Turn(turn_index=0, messages=(message,), action_start=1, action_end=3, action="<answer>A</answer>")
    members = tuple(
        Trajectory(
            group_id=f"0/{index}/0",
            member=member,
            task_id=f"zoom-{index}",
            token_ids=np.arange(3, dtype=np.int32),
            loss_mask=np.array([False, True, True]),
            logprobs=np.zeros(3, np.float32),
            turns=(turn,),
            reward=float(member),
        )
        for member in range(size)
    )
    task = Task(task_id=f"zoom-{index}", family="zoom", question="Which letter?", images=(SOURCE,))
    group = TrajectoryGroup(group_id=f"0/{index}/0", attempt=0, incarnation=0, task=task, trajectories=members)
    return group, {image.digest: data}


def record(
    run: RunDirectory, indices: Sequence[int], *, label: str = "rl_tools", max_recorded: int = 100
) -> list[bool]:
    with TrajectoryRecorder(run, label, max_recorded=max_recorded) as recorder:
        return [recorder.record(*make_group(index)) for index in indices]


def read_ids(run: RunDirectory, label: str = "rl_tools") -> list[str]:
    return [group.group_id for group in read_trajectories(run, label)]


def read_view(run: RunDirectory, label: str = "rl_tools") -> list[dict]:
    lines = (run.trajectories_path(label) / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_groups_and_images_come_back(run: RunDirectory) -> None:
    record(run, [1, 2])
    group, blobs = make_group(2)
    assert encode_group(list(read_trajectories(run, "rl_tools"))[1]) == encode_group(group)
    image = group.trajectories[0].turns[0].messages[0].images[0]
    assert read_blob(run, image) == blobs[image.digest]
    assert blob_path(run, image).suffix == ".png"


def test_labels_are_apart_and_share_blobs(run: RunDirectory) -> None:
    record(run, [1], label="sft_tools")
    record(run, [1, 2], label="rl_tools")
    assert run.recorded_labels() == ["rl_tools", "sft_tools"]
    assert read_ids(run, "sft_tools") == ["0/1/0"]
    assert len(list(run.blobs_path.iterdir())) == 2


def test_the_readable_view_has_texts_and_no_token_ids(run: RunDirectory) -> None:
    record(run, [1])
    line = read_view(run)[1]
    assert line["turns"][0]["action"] == "<answer>A</answer>"
    assert line["turns"][0]["messages"][0]["text"].endswith("8x8]Which letter, é?")
    assert (line["reward"], line["member"], line["family"]) == (1.0, 1, "zoom")
    assert "token_ids" not in line


def test_a_recording_stops_at_its_bounds(run: RunDirectory) -> None:
    assert record(run, [1, 2, 3], max_recorded=5) == [True, True, False]
    with TrajectoryRecorder(run, "other", max_recorded=100, max_blobs=1) as recorder:
        assert [recorder.record(*make_group(index)) for index in (1, 2, 1)] == [True, False, True]
    assert len(list(run.blobs_path.iterdir())) == 2


def test_a_recording_goes_on_behind_a_torn_tail(run: RunDirectory) -> None:
    record(run, [1, 2])
    path = run.trajectories_path("rl_tools") / "trajectories.msgpack"
    path.write_bytes(path.read_bytes()[:-5])
    assert read_ids(run) == ["0/1/0"]
    assert record(run, [3, 4], max_recorded=4) == [True, False]
    assert read_ids(run) == ["0/1/0", "0/3/0"]
    assert [line["group_id"] for line in read_view(run)] == ["0/1/0", "0/1/0", "0/3/0", "0/3/0"]


def test_a_fresh_recording_forgets_the_old_one(run: RunDirectory) -> None:
    record(run, [1])
    with TrajectoryRecorder(run, "rl_tools", max_recorded=4, fresh=True) as recorder:
        recorder.record(*make_group(2))
    assert read_ids(run) == ["0/2/0"]


def test_a_damaged_recording_is_named(run: RunDirectory) -> None:
    record(run, [1])
    path = run.trajectories_path("rl_tools") / "trajectories.msgpack"
    path.write_bytes(path.read_bytes().replace(b"letter", b"l3tter"))
    with pytest.raises(WireError, match="frame at byte 0 is damaged"):
        list(read_trajectories(run, "rl_tools"))


def test_a_shown_image_without_bytes_is_refused_before_the_group_is_kept(run: RunDirectory) -> None:
    group, _ = make_group(1)
    with TrajectoryRecorder(run, "rl", max_recorded=4) as recorder, pytest.raises(BlobMissingError):
        recorder.record(group, {})
    assert read_ids(run, "rl") == []


def test_changed_bytes_are_not_shown(run: RunDirectory) -> None:
    record(run, [1])
    image = make_group(1)[0].trajectories[0].turns[0].messages[0].images[0]
    blob_path(run, image).write_bytes(b"another image")
    with pytest.raises(BlobMissingError, match="digest of its name"):
        read_blob(run, image)


def test_a_digest_is_never_a_path(run: RunDirectory) -> None:
    with pytest.raises(BlobMissingError, match="is not a digest"):
        blob_path(run, ImageRef(digest="../../etc/passwd", width=1, height=1))


async def test_images_come_from_a_store_once(run: RunDirectory) -> None:
    group, blobs = make_group(1)
    asked: list[str] = []

    class Store:
        async def put_if_absent(self, digest: str, data: bytes) -> None:
            blobs[digest] = data

        async def get_many(self, digests: Sequence[str]) -> list[bytes]:
            asked.extend(digests)
            return [blobs[digest] for digest in digests]

    with TrajectoryRecorder(run, "rl", max_recorded=4) as recorder:
        assert [await recorder.keep(group, Store()) for _ in range(3)] == [True, True, False]
    assert asked == list(blobs)
