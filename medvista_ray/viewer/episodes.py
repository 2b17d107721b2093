"""One recorded trajectory as the page shows it: a strip of turns, each with what the model saw, thought and did.

Turns records into plain texts, data URIs and marks; the template escapes them. Knows no HTML and no reference.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from medvista_ray.envs.protocol_text import Answer, BadCall, Call, parse_action
from medvista_ray.errors import BlobMissingError
from medvista_ray.types.messages import ImageRef, TextPart
from medvista_ray.types.trajectories import Trajectory, TrajectoryGroup, Turn
from medvista_ray.viewer.marks import Mark, describe_arguments, image_index, make_mark

MAX_NAME_CHARS = 24
MAX_SIDE_PX = 448  # a larger image is shrunk before it goes into the page

ReadBlob = Callable[[ImageRef], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownImage:
    """An image with the calls that were made on it."""

    index: int  # as the model counts
    origin: str  # the call that made it; empty for an image of the question
    uri: str  # data:image/…; empty when the bytes are missing
    width: int  # pixels of the coordinates of marks
    height: int
    is_small: bool  # shown with hard pixels
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnView:
    """What came in, and what the policy made of it."""

    number: int  # from 1
    images: tuple[ShownImage, ...]
    result: str  # text of the tool result; empty on the first turn
    thought: str
    call: str  # `zoom(bbox=[…])`; empty without a call
    failure: str  # kind of tool failure; empty without one
    answer: str | None
    raw: str  # the whole action when it is malformed, else empty


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeView:
    """One trajectory."""

    task_id: str
    family: str
    question: str
    verdict: str  # right | wrong | "" when the reward does not say
    reward: float
    breakdown: tuple[tuple[str, float], ...]
    stop_reason: str
    error: str
    num_calls: int
    turns: tuple[TurnView, ...]
    transcript: tuple[tuple[str, str], ...]  # (role, text), everything in order


def make_episode(group: TrajectoryGroup, trajectory: Trajectory, read_blob: ReadBlob) -> EpisodeView:
    """Build the view of one trajectory; an image without bytes shows as an empty frame."""
    images = [image for turn in trajectory.turns for image in _images_of(turn)]
    marks = _place_marks(trajectory.turns, images, sources=group.task.images)
    views: list[TurnView] = []
    num_shown = 0
    before: Turn | None = None
    for turn in trajectory.turns:
        shown = range(num_shown, num_shown + len(_images_of(turn)))
        origin = _describe_origin(before)
        made = (_show(index, images[index], marks[index], read_blob, origin=origin) for index in shown)
        views.append(_make_turn(turn, tuple(made)))
        num_shown, before = shown.stop, turn
    breakdown = trajectory.reward_breakdown
    return EpisodeView(
        task_id=group.task.task_id,
        family=group.task.family,
        question=group.task.question,
        verdict="" if "correct" not in breakdown else "right" if breakdown["correct"] > 0 else "wrong",
        reward=trajectory.reward,
        breakdown=tuple(breakdown.items()),
        stop_reason=trajectory.stop_reason.value.replace("_", " "),
        error=trajectory.error or "",
        num_calls=sum(turn.tool_call is not None for turn in trajectory.turns),
        turns=tuple(views),
        transcript=tuple(_make_transcript(trajectory.turns)),
    )


def choose_episodes(groups: Sequence[TrajectoryGroup], count: int) -> list[TrajectoryGroup]:
    """Choose groups in the order of the recording, the families in turn: no look at rewards."""
    queues: dict[str, list[TrajectoryGroup]] = {}
    seen: set[str] = set()
    for group in groups:
        if group.trajectories and group.task.task_id not in seen:
            seen.add(group.task.task_id)
            queues.setdefault(group.task.family, []).append(group)
    chosen: list[TrajectoryGroup] = []
    for row in range(max((len(queue) for queue in queues.values()), default=0)):
        chosen.extend(queue[row] for queue in queues.values() if row < len(queue))
    return chosen[:count]


def _images_of(turn: Turn) -> tuple[ImageRef, ...]:
    return tuple(image for message in turn.messages for image in message.images)


def _place_marks(
    turns: Sequence[Turn], images: Sequence[ImageRef], *, sources: Sequence[ImageRef]
) -> list[tuple[Mark, ...]]:
    """Give every image the marks of the calls that name it; the first images are views of the sources."""
    marks: list[tuple[Mark, ...]] = [() for _ in images]
    for turn in turns:
        if turn.tool_call is None:
            continue
        index = image_index(turn.tool_call)
        if 0 <= index < len(images):
            failed = turn.tool_failure is not None
            stored = sources[index] if index < len(sources) else images[index]
            mark = make_mark(turn.tool_call, images[index], stored=stored, number=turn.turn_index + 1, failed=failed)
            marks[index] += (mark,)
    return marks


def _describe_origin(before: Turn | None) -> str:
    """Say which call made the images of a turn."""
    if before is None or before.tool_call is None:
        return ""
    name, source = before.tool_call.name[:MAX_NAME_CHARS], image_index(before.tool_call)
    return f"{name} of image {source}"


def _show(index: int, image: ImageRef, marks: tuple[Mark, ...], read_blob: ReadBlob, *, origin: str) -> ShownImage:
    try:
        uri = _make_uri(read_blob(image), image)
    except BlobMissingError:
        uri = ""
    return ShownImage(
        index=index,
        origin=origin,
        uri=uri,
        width=image.width,
        height=image.height,
        is_small=max(image.width, image.height) < MAX_SIDE_PX // 2,
        marks=marks,
    )


def _make_uri(data: bytes, image: ImageRef) -> str:
    if not image.mime.startswith("image/"):
        return ""
    if max(image.width, image.height) > MAX_SIDE_PX or image.mime not in ("image/png", "image/jpeg"):
        with Image.open(io.BytesIO(data)) as picture:
            picture.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
            shrunk = io.BytesIO()
            picture.convert("RGB").save(shrunk, "PNG", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(shrunk.getvalue()).decode()}"
    return f"data:{image.mime};base64,{base64.b64encode(data).decode()}"


def _make_turn(turn: Turn, images: tuple[ShownImage, ...]) -> TurnView:
    action = parse_action(turn.action)
    thought = "" if not isinstance(action, Answer | Call | BadCall) else action.thought
    call = turn.tool_call
    is_read = isinstance(action, Answer) or call is not None
    return TurnView(
        number=turn.turn_index + 1,
        images=images,
        result="\n".join(message.text for message in turn.messages if message.role == "tool").strip(),
        thought=thought,
        call="" if call is None else f"{call.name}({describe_arguments(call.arguments)})",
        failure="" if turn.tool_failure is None else turn.tool_failure.value.replace("_", " "),
        answer=action.text if isinstance(action, Answer) else None,
        raw="" if is_read else turn.action,
    )


def _make_transcript(turns: Sequence[Turn]) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    num_images = 0
    for turn in turns:
        for message in turn.messages:
            text = ""
            for part in message.parts:
                if isinstance(part, TextPart):
                    text += part.text
                else:
                    text += f"[image {num_images}]"
                    num_images += 1
            lines.append((message.role, text))
        lines.append(("assistant", turn.action))
    return lines
