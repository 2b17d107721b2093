"""What the policy is told: the system message, the question, the results of tools; and their JSON view.

Knows no task source, no reward, no reference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from medvista_ray.tools.runner import ToolDescription
from medvista_ray.types.messages import AnswerKind, ImagePart, ImageRef, Message, Part, Task, TextPart
from medvista_ray.types.tool_calls import ToolOutcome

_SCHEMA_PROMPT = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{signatures}
</tools>

# Protocol

Each reply is one of two, with nothing before, between or after the tags:
<think>your reasoning</think><tool_call>{{"name": <function-name>, "arguments": <args-json-object>}}</tool_call>
<think>your reasoning</think><answer>your answer</answer>
One call a reply; its result comes as the next message. Images are counted from 0 in order of appearance, those of \
tools included. {ending}"""
_ANSWER_PROMPT = """\
# Protocol

Your reply has this form, with nothing before, between or after the tags:
<think>your reasoning</think><answer>your answer</answer>
{ending}"""
_ACTIONS_PROMPT = """\
# Actions

You draw the outline of an object step by step. After each action you see it over the image.
You are provided with function signatures within <tools></tools> XML tags:
<tools>
{signatures}
</tools>

# Protocol

Each reply has this form, with nothing before, between or after the tags:
<think>your reasoning</think><tool_call>{{"name": <function-name>, "arguments": <args-json-object>}}</tool_call>
One call a reply. Images are counted from 0 in order of appearance; boxes and points are those of image 0."""
_ENDINGS: Mapping[AnswerKind, str] = MappingProxyType(
    {
        "choice": "Answer with the id of one choice and nothing else.",
        "text": "Answer with a few words and nothing else.",
        "number": "Answer with a number and its unit and nothing else.",
        "list": "Answer with the items in order, separated by commas, and nothing else.",
        "boxes": "Answer with a JSON list of boxes [[x0, y0, x1, y1], …], 0 to 1000 of width and height of image 0. "
        "Cite the places that you rely on inside <think> as <box>[x0, y0, x1, y1]</box>, in the same unit.",
        "mask": "",
    }
)
_COUNT_ENDING = "Answer with a number and nothing else."


def make_system_message(
    tools: Sequence[ToolDescription], *, answers_with: AnswerKind, style: Literal["names", "schemas"], unit: str = ""
) -> Message | None:
    """Return the message that offers the tools and says the protocol; None where there is nothing to say.

    `schemas` tells all of it; `names` is for small models that were fine-tuned on the protocol. `unit` is that of a
    number, "" for a count.
    """
    ending = _COUNT_ENDING if answers_with == "number" and not unit else _ENDINGS[answers_with]
    if not tools:
        answer_only = _ANSWER_PROMPT.format(ending=ending)
        return Message(role="system", parts=(TextPart(text=answer_only),)) if style == "schemas" else None
    if style == "names":
        text = f"Tools: {', '.join(tool.name for tool in tools)}."
    else:
        signatures = "\n".join(_make_signature(tool) for tool in tools)
        text = _SCHEMA_PROMPT.format(signatures=signatures, ending=ending)
    return Message(role="system", parts=(TextPart(text=text),))


def make_actions_message(actions: Sequence[ToolDescription], *, style: Literal["names", "schemas"]) -> Message:
    """Return the system message of a protocol without answers: each reply is one call, and one of them ends it."""
    if style == "names":
        text = f"Actions: {', '.join(action.name for action in actions)}."
    else:
        text = _ACTIONS_PROMPT.format(signatures="\n".join(_make_signature(action) for action in actions))
    return Message(role="system", parts=(TextPart(text=text),))


def make_question_message(task: Task, views: Sequence[ImageRef], *, list_choices: bool) -> Message:
    """Return the user message: a view of each source image, then the question."""
    text = task.question
    if list_choices and task.choices:
        lines = (
            choice.choice_id if choice.text == choice.choice_id else f"{choice.choice_id}: {choice.text}"
            for choice in task.choices
        )
        text = "\n".join((text, "Choices:", *lines))
    images: tuple[Part, ...] = tuple(ImagePart(image=view) for view in views)
    return Message(role="user", parts=(*images, TextPart(text=text)))


def make_tool_message(outcome: ToolOutcome) -> Message:
    """Return the message that shows what a call gave."""
    images: tuple[Part, ...] = tuple(ImagePart(image=image) for image in outcome.images)
    text = (TextPart(text=outcome.text),) if outcome.text or not images else ()
    return Message(role="tool", parts=(*images, *text))


def messages_to_json(messages: Sequence[Message], *, first_image_index: int) -> str:
    """Write messages as JSON text; an image is named by the index that calls use, with digest and size."""
    index = first_image_index
    rows: list[dict[str, Any]] = []
    for message in messages:
        parts: list[dict[str, Any]] = []
        for part in message.parts:
            if isinstance(part, TextPart):
                parts.append({"type": "text", "text": part.text})
                continue
            image = part.image
            parts.append(
                {
                    "type": "image",
                    "index": index,
                    "digest": image.digest,
                    "width": image.width,
                    "height": image.height,
                }
            )
            index += 1
        rows.append({"role": message.role, "parts": parts})
    return json.dumps(rows, ensure_ascii=False)


def _make_signature(tool: ToolDescription) -> str:
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return json.dumps({"type": "function", "function": function}, ensure_ascii=False)
