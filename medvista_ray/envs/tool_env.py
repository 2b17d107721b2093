"""`ToolEnv`: the loop of an episode over one task: think, call a tool, look again, end. The task families subclass it.

Owns one episode at a time: its messages, its indexed images, its actions. The reference stays behind the rubric: only
reward numbers come out, at the end. Knows no tokens and no policy.

How episodes end (our choices where VISTA-Gym says nothing):
- an answer ends the episode (terminated); so does an action with wrong tags (terminated, format -1);
- a bad call or a failing tool does not: its error is the next observation;
- without an end in `max_turns` actions, or past `episode_timeout_s`, it is truncated.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded

from medvista_ray.config.schema import EnvConfig
from medvista_ray.envs.parts import check_default_view, complete_config, find_rubric, open_tasks
from medvista_ray.envs.prompts import make_question_message, make_system_message, make_tool_message, messages_to_json
from medvista_ray.envs.protocol_text import Answer, BadCall, Call, Malformed, ParsedAction, parse_action
from medvista_ray.envs.spaces import ImageTuple, UnicodeText
from medvista_ray.errors import DataError
from medvista_ray.images.codec import decode
from medvista_ray.images.store import MemoryBlobCache
from medvista_ray.rewards.grading import is_valid_answer
from medvista_ray.rewards.rubric import FinishedEpisode, Rubric, Score, ScoredAction
from medvista_ray.tools.base import CallKey
from medvista_ray.tools.renderer import ViewRenderer
from medvista_ray.tools.runner import ToolDescription, ToolRunner, make_failure, make_tool_runner
from medvista_ray.tools.shelf import ImageShelf
from medvista_ray.types.messages import AnswerKind, Message, Reference, Task
from medvista_ray.types.protocols import BlobCache, TaskSource
from medvista_ray.types.tool_calls import ToolCall, ToolFailure, ToolOutcome
from medvista_ray.types.trajectories import StopReason

Observation = dict[str, Any]
StepResult = tuple[Observation, float, bool, bool, dict[str, Any]]
_OPTIONS = {"task_index", "task", "reference", "trajectory_id", "attempt"}


@dataclass(slots=True, kw_only=True, eq=False)
class Episode:
    """What is known of the episode that runs."""

    task: Task
    reference: Reference = field(repr=False)
    shelf: ImageShelf
    trajectory_id: str
    attempt: int
    started_s: float
    actions: list[ScoredAction] = field(default_factory=list)
    messages: tuple[Message, ...] = ()  # new since the last action
    num_images: int = 0  # shown before `messages`
    is_over: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an action leads to."""

    call: ToolCall | None = None  # to be run; its outcome is the next observation
    outcome: ToolOutcome | None = None  # what is shown, when nothing is run
    stop: StopReason | None = None
    answer: str | None = None  # when it stops with one


class ToolEnv(gymnasium.Env[Observation, str]):  # type: ignore[misc]
    """A Gymnasium env over a task source; `observe()` gives the records behind the observation.

    A family says what its default tasks and rewards are, what it tells the policy (`first_messages`), which call an
    action stands for (`plan`), and what an episode leaves behind for the rubric (`finished`).

    Args:
        tasks: where episodes come from; None = `data`.
        data: what `data.source` names: a folder, or a set; None = a small set inside installed packages.
        split: which half of `data`.
        families: of `data`; empty = all.
        config: limits, prompt and tools; a mapping changes fields of the family's defaults, None leaves them.
        tools: a runner to share between envs, or specs; None = those of the config, closed with the env.
        rubric: a rubric, or its name; None = the one that `config.rubric` names.
        blobs: where encoded images are; None = that of `renderer`, or one of its own.
        renderer: draws views; share one per process so that a view is encoded once.
        clock: seconds, monotonic.
        render_mode: `rgb_array` lets `render` return the images of the newest observation, side by side.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 1}
    default_rubric: ClassVar[str] = "vista"
    needs_small_views: ClassVar[bool] = False  # its default tasks show their answer at a larger view
    answer_kinds: ClassVar[tuple[AnswerKind, ...]] = get_args(AnswerKind)  # what its tasks may ask for

    def __init__(
        self,
        *,
        tasks: TaskSource | None = None,
        data: str | Path | None = None,
        split: Literal["train", "held_out"] = "train",
        families: Sequence[str] = (),
        config: EnvConfig | Mapping[str, Any] | None = None,
        tools: ToolRunner | Sequence[str] | None = None,
        rubric: Rubric | str | None = None,
        blobs: BlobCache | None = None,
        renderer: ViewRenderer | None = None,
        clock: Callable[[], float] = time.monotonic,
        render_mode: str | None = None,
    ) -> None:
        if data is not None:
            tasks = open_tasks(data, split=split, families=families)
        self.render_mode = render_mode
        self.config = complete_config(type(self), config, has_tasks=tasks is not None)
        if tools is not None and not isinstance(tools, ToolRunner):
            self.config, tools = replace(self.config, tools=tuple(tools)), None
        if renderer is None:
            renderer = ViewRenderer(blobs or MemoryBlobCache(), view_size_px=self.config.view_size_px)
        elif blobs is not None and blobs is not renderer.blobs:
            raise ValueError("the renderer writes to another blob cache than the one given")
        self.observation_space = gymnasium.spaces.Dict({"messages": UnicodeText(), "images": ImageTuple()})
        self.action_space = UnicodeText()
        self._tasks = tasks
        self._renderer = renderer
        self._owns_tools = tools is None
        self._rubric = find_rubric(rubric, named=self.config.rubric or self.default_rubric)
        self._tools = tools or make_tool_runner(
            self.tool_specs(self.config),
            timeout_s=self.config.tool_timeout_s,
            service_threads=self.config.service_threads,
        )
        self._clock = clock
        self._shown: tuple[np.ndarray, ...] = ()
        self._episode: Episode | None = None

    @property
    def blobs(self) -> BlobCache:
        """Return where the bytes of every shown image are."""
        return self._renderer.blobs

    def observe(self) -> tuple[Message, ...]:
        """Return the messages that are new since the last action."""
        return self._current().messages

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: draws the task; the same seed gives the same episode.
            options: `task_index` picks a task of the source; `task` and `reference` bring one whose images are in
                `blobs`; `trajectory_id` and `attempt` name the episode in the keys of tool calls.
        """
        super().reset(seed=seed)
        given = dict(options or {})
        if unknown := sorted(given.keys() - _OPTIONS):
            raise ValueError(f"reset knows no option {unknown[0]!r}; there are {', '.join(sorted(_OPTIONS))}")
        if "task" in given and not (isinstance(given["task"], Task) and isinstance(given.get("reference"), Reference)):
            raise ValueError("reset: options['task'] is a Task, and options['reference'] its Reference")
        task, reference = self._pick_task(given)
        self.check_task(task)
        self._episode = episode = self.make_episode(
            task=task,
            reference=reference,
            shelf=ImageShelf(task, renderer=self._renderer),
            trajectory_id=str(given.get("trajectory_id", task.task_id)),
            attempt=int(given.get("attempt", 0)),
            started_s=self._clock(),
        )
        episode.messages = self.first_messages(episode)
        return self._make_observation(episode), {"task_id": task.task_id, "family": task.family}

    def step(self, action: str) -> StepResult:
        """Take an action; a call may wait for a worker, at most until the tool's deadline."""
        episode, parsed = self._begin(action)
        plan = self.plan(episode, parsed)
        if plan.call is not None:
            key, budget_s = _make_key(episode), self._budget_s(episode)
            outcome = self._tools.run(plan.call, shelf=episode.shelf, key=key, budget_s=budget_s)
            plan = replace(plan, outcome=outcome)
        return self._finish(episode, parsed, plan)

    async def step_async(self, action: str) -> StepResult:
        """Take an action as `step` does, without holding the event loop while a worker is busy."""
        episode, parsed = self._begin(action)
        plan = self.plan(episode, parsed)
        if plan.call is not None:
            key, budget_s = _make_key(episode), self._budget_s(episode)
            outcome = await self._tools.run_async(plan.call, shelf=episode.shelf, key=key, budget_s=budget_s)
            plan = replace(plan, outcome=outcome)
        return self._finish(episode, parsed, plan)

    def stop(self, *, cut_action: str | None = None) -> Score:
        """End the episode by a limit that the env does not see (tokens, context) and score it.

        Args:
            cut_action: the action that the limit cut off; it counts as not well-formed.
        """
        episode = self._current()
        if cut_action is not None:
            episode.actions.append(ScoredAction(text=cut_action, is_well_formed=False))
        return self._score(episode, answer=None)

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """Return the images of the newest observation side by side, uint8 [H, W, 3]; None without `render_mode`."""
        if self.render_mode is None:
            return None
        height = max((image.shape[0] for image in self._shown), default=1)
        padded = [np.pad(image, ((0, height - image.shape[0]), (0, 4), (0, 0))) for image in self._shown]
        return np.concatenate(padded, axis=1) if padded else np.zeros((1, 1, 3), np.uint8)

    def close(self) -> None:
        """Stop the workers of a runner of our own; may be called again."""
        if self._owns_tools:
            self._tools.close()

    # --- what a family may say differently
    @classmethod
    def make_default_config(cls) -> EnvConfig:
        """Return the limits and tools of an env that is made without a config."""
        return EnvConfig()

    @classmethod
    def tool_specs(cls, config: EnvConfig) -> tuple[str, ...]:
        """Return the tools that episodes need, whether or not they are offered."""
        return config.tools if config.offer_tools else ()

    @classmethod
    @abstractmethod
    def make_default_tasks(cls) -> TaskSource:
        """Return the tasks of an env that is made without any."""

    @classmethod
    def check_task(cls, task: Task) -> None:
        """Refuse a task that asks for what this family does not grade; `DataError` names both."""
        if task.answers_with not in cls.answer_kinds:
            raise DataError(
                f"env.target: {cls.__name__} asks for {' or '.join(cls.answer_kinds)}, and task {task.task_id!r} of "
                f"family {task.family!r} for {task.answers_with}: choose others with data.families, or another env"
            )

    def make_episode(self, **facts: Any) -> Episode:
        """Make the state of one episode."""
        return Episode(**facts)

    @property
    def offered(self) -> tuple[ToolDescription, ...]:
        """Return what the policy may call."""
        return self._tools.descriptions if self.config.offer_tools else ()

    def first_messages(self, episode: Episode) -> tuple[Message, ...]:
        """Return what the policy is told first: the tools and the protocol, then the question over its images."""
        views = [episode.shelf.first_view(index).ref for index in range(episode.shelf.num_sources)]
        question = make_question_message(episode.task, views, list_choices=self.config.list_choices)
        task = episode.task
        system = make_system_message(
            self.offered, answers_with=task.answers_with, style=self.config.tool_prompt, unit=task.unit
        )
        return (question,) if system is None else (system, question)

    def plan(self, episode: Episode, parsed: ParsedAction) -> Plan:
        """Decide what an action stands for: a call to run, an error to tell, or the end."""
        if isinstance(parsed, Answer):
            return Plan(stop=StopReason.ANSWERED, answer=parsed.text)
        if isinstance(parsed, Malformed):
            return Plan(stop=StopReason.MALFORMED)
        if isinstance(parsed, BadCall):
            return Plan(outcome=make_failure(ToolFailure.BAD_SCHEMA, parsed.error))
        if not self.config.offer_tools:
            return Plan(outcome=make_failure(ToolFailure.BAD_SCHEMA, "there are no tools"))
        if self.is_last_turn(episode):  # nobody would see the result
            return Plan(outcome=self._tools.check(parsed.call) or ToolOutcome(text=""))
        return Plan(call=parsed.call)

    def learn(self, episode: Episode, outcome: ToolOutcome) -> None:
        """Take note of what a call gave, before it is shown."""

    def finished(self, episode: Episode, *, answer: str | None) -> FinishedEpisode:
        """Return what the rubric sees of an episode."""
        return FinishedEpisode(actions=tuple(episode.actions), answer=answer)

    def is_last_turn(self, episode: Episode) -> bool:
        """Return whether no turn is left after the action that was taken."""
        return len(episode.actions) >= self.config.max_turns

    def _pick_task(self, given: Mapping[str, Any]) -> tuple[Task, Reference]:
        if "task" in given:
            return given["task"], given["reference"]
        if self._tasks is None:
            check_default_view(type(self), self.config)
            self._tasks = self.make_default_tasks()
        index = given.get("task_index")
        if index is None:
            index = int(self.np_random.integers(len(self._tasks)))
        elif not isinstance(index, int | np.integer) or not 0 <= index < len(self._tasks):
            raise ValueError(f"task_index must be from 0 to {len(self._tasks) - 1}, got {index!r}")
        record = self._tasks[int(index)]
        for data in record.blobs.values():
            self.blobs.put(data)
        return record.task, record.reference

    def _current(self) -> Episode:
        if self._episode is None or self._episode.is_over:
            raise ResetNeeded("the episode is over, or none has begun: call reset()")
        return self._episode

    def _begin(self, action: str) -> tuple[Episode, ParsedAction]:
        episode = self._current()
        if not isinstance(action, str):
            raise TypeError(f"an action is text, got {type(action).__name__}")
        parsed = parse_action(action)
        episode.actions.append(ScoredAction(text=action, is_well_formed=not isinstance(parsed, Malformed)))
        return episode, parsed

    def _budget_s(self, episode: Episode) -> float:
        return self.config.episode_timeout_s - (self._clock() - episode.started_s)

    def _finish(self, episode: Episode, parsed: ParsedAction, plan: Plan) -> StepResult:
        if plan.call is not None and plan.outcome is not None:
            if not plan.outcome.is_error:
                episode.actions[-1] = replace(episode.actions[-1], used_tool=True)
            self.learn(episode, plan.outcome)
        episode.num_images += sum(len(message.images) for message in episode.messages)
        stop = plan.stop
        if stop is None and self.is_last_turn(episode):
            stop = StopReason.TURN_LIMIT
        if stop is None and self._budget_s(episode) <= 0:
            stop = StopReason.DEADLINE
        episode.messages = () if stop is not None or plan.outcome is None else (make_tool_message(plan.outcome),)
        observation = self._make_observation(episode)
        score = Score(reward=0.0) if stop is None else self._score(episode, answer=plan.answer)
        info = {
            "stop_reason": None if stop is None else stop.value,
            "reward_breakdown": dict(score.breakdown),
            "tool_call": parsed.call if isinstance(parsed, Call) else None,
            "tool_failure": None if plan.outcome is None else plan.outcome.failure,
            "is_valid_answer": plan.answer is not None and is_valid_answer(plan.answer, episode.task),
        }
        is_truncated = stop is not None and stop.is_truncated
        return observation, score.reward, stop is not None and not is_truncated, is_truncated, info

    def _score(self, episode: Episode, *, answer: str | None) -> Score:
        episode.is_over = True
        finished = self.finished(episode, answer=answer)
        return self._rubric.score(finished, task=episode.task, reference=episode.reference)

    def _make_observation(self, episode: Episode) -> Observation:
        shown = [image for message in episode.messages for image in message.images]
        images = tuple(np.array(self._pixels_of(image.digest, image.mime)) for image in shown)
        if images:
            self._shown = images
        return {
            "messages": messages_to_json(episode.messages, first_image_index=episode.num_images),
            "images": images,
        }

    def _pixels_of(self, digest: str, mime: str) -> np.ndarray:
        pixels = self._renderer.pixels_of(digest)
        return decode(self.blobs.get(digest), mime) if pixels is None else pixels


def _make_key(episode: Episode) -> CallKey:
    return CallKey(trajectory=episode.trajectory_id, turn=len(episode.actions) - 1, attempt=episode.attempt)
