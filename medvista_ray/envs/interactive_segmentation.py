"""`InteractiveSegmentationEnv`: outline an object by boxes and points, look at the overlay, correct it, stop.

After MedSAM-Agent (arXiv 2602.03320): the actions `add_bbox`, `add_point` (positive or negative) and `stop_action`, one
a turn, at most five turns, the overlay as observation. Our choices: coordinates from 0 to 1000 (there 0 to 999), that
the prompts add up over the episode, that a new box replaces the one before, and that an `<answer>` is not well-formed.
The mask comes from the tool `segment`; the env keeps it at the resolution of image 0, for the rubric alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from medvista_ray.config.schema import EnvConfig
from medvista_ray.envs.prompts import make_actions_message, make_question_message
from medvista_ray.envs.protocol_text import Answer, Call, ParsedAction
from medvista_ray.envs.tool_env import Episode, Plan, ToolEnv
from medvista_ray.errors import ConfigError
from medvista_ray.rewards.rubric import FinishedEpisode
from medvista_ray.tools.base import CallKey
from medvista_ray.tools.runner import ToolDescription, make_failure
from medvista_ray.types.messages import AnswerKind, Message
from medvista_ray.types.protocols import TaskSource
from medvista_ray.types.tool_calls import ToolCall, ToolFailure, ToolOutcome
from medvista_ray.types.trajectories import StopReason

MAX_TURNS = 5  # of MedSAM-Agent
SEGMENT = "segment"
ADD_BBOX, ADD_POINT, STOP_ACTION = "add_bbox", "add_point", "stop_action"
_THOUSANDTHS = {"type": "integer", "minimum": 0, "maximum": 1000}
_NOTHING_YET = "nothing is outlined yet"


def _describe(name: str, description: str, properties: Mapping[str, Any]) -> ToolDescription:
    parameters = {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }
    return ToolDescription(name=name, description=description, parameters=MappingProxyType(parameters))


ACTIONS = (
    _describe(
        ADD_BBOX,
        "Put a box around the object: [x0, y0, x1, y1] from 0 to 1000 of width and height. It replaces the last box.",
        {"bbox": {"type": "array", "items": _THOUSANDTHS, "minItems": 4, "maxItems": 4}},
    ),
    _describe(
        ADD_POINT,
        "Mark a point [x, y], from 0 to 1000, that belongs to the object (positive) or does not (negative).",
        {
            "point": {"type": "array", "items": _THOUSANDTHS, "minItems": 2, "maxItems": 2},
            "label": {"type": "string", "enum": ["positive", "negative"]},
        },
    ),
    _describe(STOP_ACTION, "End with the outline as it is shown.", {}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """What the policy has said of the object so far, 0 to 1000 of image 0."""

    bbox: tuple[int, ...] = ()
    points: tuple[tuple[int, int], ...] = ()
    labels: tuple[int, ...] = ()  # 1 belongs to the object, 0 does not

    def after(self, call: ToolCall) -> Prompts:
        """Return the prompts with those of one action."""
        if call.name == ADD_BBOX:
            return replace(self, bbox=tuple(call.arguments["bbox"]))
        x, y = call.arguments["point"]
        label = int(call.arguments["label"] == "positive")
        return replace(self, points=(*self.points, (x, y)), labels=(*self.labels, label))

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `segment`."""
        arguments: dict[str, Any] = {"image": 0}
        if self.bbox:
            arguments["bbox"] = list(self.bbox)
        if self.points:
            arguments["points"] = [list(point) for point in self.points]
            arguments["labels"] = list(self.labels)
        return arguments


@dataclass(slots=True, kw_only=True, eq=False)
class SegmentationEpisode(Episode):
    """An episode with its prompts and masks."""

    prompts: Prompts = field(default_factory=Prompts)
    asked: Prompts | None = None  # the prompts of the call that runs
    masks: list[np.ndarray] = field(default_factory=list)  # bool [H, W] of image 0, after each action that gave one


class InteractiveSegmentationEnv(ToolEnv):
    """Outline an object in image 0. Tools of the config beside `segment` are offered too, and cost a turn each."""

    default_rubric: ClassVar[str] = "segmentation"
    answer_kinds: ClassVar[tuple[AnswerKind, ...]] = ("mask",)

    def __init__(self, **parts: Any) -> None:
        """Take what `ToolEnv` takes."""
        super().__init__(**parts)
        if SEGMENT not in self._tools.names:
            self.close()
            raise ConfigError("env.tools: InteractiveSegmentationEnv needs 'segment' or 'segment_classical' among them")

    @classmethod
    def tool_specs(cls, config: EnvConfig) -> tuple[str, ...]:
        """Return all tools of the config: `segment` is needed though none may be offered."""
        return config.tools

    @classmethod
    def make_default_config(cls) -> EnvConfig:
        """Offer the actions and no other tool."""
        return EnvConfig(tools=(SEGMENT,), max_turns=MAX_TURNS)

    @classmethod
    def make_default_tasks(cls) -> TaskSource:
        """Return drawn inserts in real images of installed packages, whose masks are known exactly."""
        from medvista_ray.data.sources import make_task_source

        return make_task_source("pocket", "train", families=("insert_mask",), weights=(), num_tasks=0, seed=0)

    @property
    def offered(self) -> tuple[ToolDescription, ...]:
        """Return the three actions, then the tools that only look."""
        looks = self._tools.descriptions if self.config.offer_tools else ()
        return (*ACTIONS, *(tool for tool in looks if tool.name != SEGMENT))

    def make_episode(self, **facts: Any) -> Episode:
        """Make the state of one episode."""
        return SegmentationEpisode(**facts)

    def first_messages(self, episode: Episode) -> tuple[Message, ...]:
        """Return the actions and the protocol, then the question over its images."""
        views = [episode.shelf.first_view(index).ref for index in range(episode.shelf.num_sources)]
        question = make_question_message(episode.task, views, list_choices=False)
        return make_actions_message(self.offered, style=self.config.tool_prompt), question

    def is_last_turn(self, episode: Episode) -> bool:
        """Return whether no turn is left; five are the most, whatever the config allows."""
        return len(episode.actions) >= min(self.config.max_turns, MAX_TURNS)

    def plan(self, episode: Episode, parsed: ParsedAction) -> Plan:
        """Turn the three actions into calls of `segment`, or into the end; the mask of a last turn counts."""
        assert isinstance(episode, SegmentationEpisode)
        if isinstance(parsed, Answer):
            episode.actions[-1] = replace(episode.actions[-1], is_well_formed=False)
            return Plan(stop=StopReason.MALFORMED)
        if not isinstance(parsed, Call) or parsed.call.name not in self._validators:
            if isinstance(parsed, Call) and parsed.call.name == SEGMENT:
                names = ", ".join(description.name for description in self.offered)
                return Plan(outcome=make_failure(ToolFailure.BAD_SCHEMA, f"no tool {SEGMENT!r}; there are {names}"))
            return super().plan(episode, parsed)
        problem = next(iter(self._validators[parsed.call.name].iter_errors(dict(parsed.call.arguments))), None)
        if problem is not None:
            return Plan(outcome=make_failure(ToolFailure.BAD_SCHEMA, problem.message))
        if parsed.call.name == STOP_ACTION:
            if not episode.masks:
                return Plan(outcome=make_failure(ToolFailure.BAD_ARGUMENT, _NOTHING_YET))
            return Plan(stop=StopReason.ANSWERED, answer=STOP_ACTION)
        episode.asked = episode.prompts.after(parsed.call)
        return Plan(call=ToolCall(name=SEGMENT, arguments=episode.asked.arguments()))

    def learn(self, episode: Episode, outcome: ToolOutcome) -> None:
        """Keep the mask of a call that gave one, and the prompts it came from; after a failure the old ones hold."""
        assert isinstance(episode, SegmentationEpisode)
        asked, episode.asked = episode.asked, None
        if asked is None or outcome.is_error:
            return
        newest = episode.shelf.context(CallKey()).images[-1]
        if newest.record.mask_digest is not None:
            episode.prompts = asked
            episode.masks.append(newest.source_mask())

    def finished(self, episode: Episode, *, answer: str | None) -> FinishedEpisode:
        """Return the actions and every mask on the way."""
        assert isinstance(episode, SegmentationEpisode)
        return FinishedEpisode(actions=tuple(episode.actions), answer=answer, masks=tuple(episode.masks))

    @cached_property
    def _validators(self) -> Mapping[str, Any]:
        from jsonschema import Draft202012Validator

        return {action.name: Draft202012Validator(dict(action.parameters)) for action in ACTIONS}
