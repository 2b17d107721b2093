"""Recorded trajectories: frames of groups, a readable view of them, and copies of the images they show.

`trajectories.msgpack` is the record; `trajectories.jsonl` is derived from it for people and never read back. Several
recordings, each under its label, share one folder of blobs. Bounded in trajectories and in blobs. Knows no reference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medvista_ray.errors import BlobMissingError
from medvista_ray.runs.directory import RunDirectory, write_atomic
from medvista_ray.types.messages import ImagePart, ImageRef, Message
from medvista_ray.types.protocols import BlobStore
from medvista_ray.types.trajectories import Trajectory, TrajectoryGroup, Turn
from medvista_ray.types.wire import cut_torn_tail, decode_group, encode_group, iter_frames, write_frame

_SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "application/x-npy": ".npy"}


class TrajectoryRecorder:
    """Appends groups under one label until enough trajectories or images are kept; goes on with a recording."""

    def __init__(
        self, run: RunDirectory, label: str, *, max_recorded: int, max_blobs: int = 2000, fresh: bool = False
    ) -> None:
        self._run = run
        self._max_recorded = max_recorded
        self._max_blobs = max_blobs
        folder = run.trajectories_path(label)
        folder.mkdir(parents=True, exist_ok=True)
        run.blobs_path.mkdir(exist_ok=True)
        path = folder / "trajectories.msgpack"
        self._file = path.open("w+b" if fresh or not path.exists() else "r+b")
        cut_torn_tail(self._file)
        self._view = (folder / "trajectories.jsonl").open("w", encoding="utf-8")
        self._digests: set[str] = set()
        self.num_recorded = 0  # trajectories
        self._file.seek(0)
        for payload in iter_frames(self._file):
            self._count(decode_group(payload))

    def __enter__(self) -> TrajectoryRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close both files."""
        self._file.close()
        self._view.close()

    def has_room_for(self, group: TrajectoryGroup) -> bool:
        """Return whether the group fits both bounds."""
        images = self._digests | set(shown_images(group))
        return self.num_recorded + len(group.trajectories) <= self._max_recorded and len(images) <= self._max_blobs

    def missing(self, group: TrajectoryGroup) -> list[str]:
        """Return the digests of shown images whose bytes this run does not have yet."""
        return [digest for digest, image in shown_images(group).items() if not blob_path(self._run, image).exists()]

    def record(self, group: TrajectoryGroup, blobs: Mapping[str, bytes]) -> bool:
        """Keep one group with its images; return False when there is no room for it."""
        if not self.has_room_for(group):
            return False
        for digest, image in shown_images(group).items():
            path = blob_path(self._run, image)
            if not path.exists():
                if digest not in blobs:
                    raise BlobMissingError(f"the bytes of image {digest[:12]} were not given to the recorder")
                write_atomic(path, blobs[digest], durable=False)
        write_frame(self._file, encode_group(group))
        self._file.flush()
        self._count(group)
        return True

    async def keep(self, group: TrajectoryGroup, store: BlobStore) -> bool:
        """Keep one group, its images fetched from a store; return False when there is no room for it."""
        if not self.has_room_for(group):
            return False
        digests = self.missing(group)
        return self.record(group, dict(zip(digests, await store.get_many(digests), strict=True)))

    def _count(self, group: TrajectoryGroup) -> None:
        self.num_recorded += len(group.trajectories)
        self._digests |= set(shown_images(group))
        for trajectory in group.trajectories:
            self._view.write(json.dumps(describe_trajectory(trajectory, group), ensure_ascii=False) + "\n")
        self._view.flush()


def read_trajectories(run: RunDirectory, label: str) -> Iterator[TrajectoryGroup]:
    """Yield the recorded groups of one label in order; `WireError` names the offset of a damaged frame."""
    path = run.trajectories_path(label) / "trajectories.msgpack"
    if not path.exists():
        return
    with path.open("rb") as file:
        for payload in iter_frames(file):
            yield decode_group(payload)


def read_blob(run: RunDirectory, image: ImageRef) -> bytes:
    """Return the bytes of a shown image; `BlobMissingError` when they are not there, or not those of the digest."""
    path = blob_path(run, image)
    if not path.is_file():
        raise BlobMissingError(f"image {image.digest[:12]} has no copy in {run.blobs_path}")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != image.digest:
        raise BlobMissingError(f"{path} does not have the digest of its name")
    return data


def blob_path(run: RunDirectory, image: ImageRef) -> Path:
    """Return where the copy of an image lies, or would lie; with a suffix, so that people can open it."""
    if len(image.digest) != 64 or not set(image.digest) <= set("0123456789abcdef"):
        raise BlobMissingError(f"{image.digest[:80]!r} is not a digest")
    return run.blobs_path / f"{image.digest}{_SUFFIXES.get(image.mime, '.bin')}"


def shown_images(group: TrajectoryGroup) -> dict[str, ImageRef]:
    """Return every image that a message of the group shows, by digest, in order of appearance."""
    return {
        image.digest: image
        for trajectory in group.trajectories
        for turn in trajectory.turns
        for message in turn.messages
        for image in message.images
    }


def describe_trajectory(trajectory: Trajectory, group: TrajectoryGroup) -> dict[str, Any]:
    """Return one trajectory as plain values for people: texts, calls and digests, no token ids."""
    return {
        "group_id": group.group_id,
        "member": trajectory.member,
        "task_id": group.task.task_id,
        "family": group.task.family,
        "question": group.task.question,
        "turns": [_describe_turn(turn) for turn in trajectory.turns],
        "stop_reason": trajectory.stop_reason,
        "reward": trajectory.reward,
        "reward_breakdown": dict(trajectory.reward_breakdown),
        "num_tokens": len(trajectory.token_ids),
        "num_action_tokens": trajectory.num_action_tokens,
        "policy_versions": sorted({span.policy_version for span in trajectory.version_spans}),
        "error": trajectory.error,
    }


def _describe_turn(turn: Turn) -> dict[str, Any]:
    return {
        "messages": [{"role": message.role, "text": _describe_message(message)} for message in turn.messages],
        "action": turn.action,
        "tool_failure": turn.tool_failure,
    }


def _describe_message(message: Message) -> str:
    return "".join(
        f"[image {part.image.digest[:12]} {part.image.width}x{part.image.height}]"
        if isinstance(part, ImagePart)
        else part.text
        for part in message.parts
    )
