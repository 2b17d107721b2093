"""Fill the made parts of docs/envs/: what an env shows first, one episode of it, and what some episodes earn.

    python docs/make_env_pages.py [NAME ...]

The episode is played by the scripted expert through the real env; the pictures are what the env showed. What episodes
earn is worked out by the same env under each rubric of its table.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from page_parts import DOCS, Panel, draw_row, fence, fill_parts, save_picture
from PIL import Image

from medvista_ray.coldstart.expert import MIDDLE, plan_expert, write_answer, write_call
from medvista_ray.config.schema import EnvConfig
from medvista_ray.data.sources import make_task_source
from medvista_ray.envs.grounding import GroundingEnv
from medvista_ray.envs.interactive_segmentation import InteractiveSegmentationEnv
from medvista_ray.envs.medical_vqa import MedicalVQAEnv
from medvista_ray.envs.tool_env import ToolEnv
from medvista_ray.rewards.boxes import parse_boxes
from medvista_ray.tools.overlay import draw_boxes
from medvista_ray.types.protocols import TaskRecord, TaskSource

FOLDER, PICTURES = DOCS / "envs", DOCS / "images" / "envs"
WRONG_BOX = [200, 330, 330, 620]  # a part of the skull
_TOOLS_BEGIN, _TOOLS_END = "<tools>\n", "\n</tools>"
Actions = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EnvPage:
    """What is shown of one env."""

    env: Callable[..., ToolEnv]
    family: str  # of the embedded set
    index: int  # of the task within it
    tools: tuple[str, ...]
    rubrics: tuple[str, ...]  # the default first
    plan: Mapping[str, float]  # how the expert plays
    scripts: Callable[[TaskRecord, Actions], Mapping[str, Actions]]  # of the table of rewards

    def open(self, *, rubric: str = "") -> tuple[ToolEnv, TaskRecord]:
        """Make the env over the task of the page."""
        tasks: TaskSource = make_task_source(
            "embedded", "train", families=(self.family,), weights=(), num_tasks=0, seed=0
        )
        config = EnvConfig(tools=self.tools, rubric=rubric, view_size_px=420)
        return self.env(tasks=tasks, config=config), tasks[self.index]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Played:
    """An episode as it went."""

    messages: list[list[dict[str, Any]]]  # of each observation
    images: list[list[np.ndarray]]
    actions: Actions
    reward: float
    info: Mapping[str, Any]


def plan(page: EnvPage, record: TaskRecord) -> Actions:
    """Return the actions of the expert."""
    return plan_expert(record.task, record.reference, rng=np.random.default_rng(0), **page.plan)


def play(env: ToolEnv, index: int, actions: Actions) -> Played:
    """Play actions over a task, as far as the env lets them."""
    observation, info = env.reset(seed=0, options={"task_index": index})
    messages, images, reward = [json.loads(observation["messages"])], [list(observation["images"])], 0.0
    for action in actions:
        observation, reward, is_terminated, is_truncated, info = env.step(action)
        messages.append(json.loads(observation["messages"]))
        images.append(list(observation["images"]))
        if is_terminated or is_truncated:
            break
    else:
        raise ValueError(f"these actions did not end the episode: {actions}")
    return Played(messages=messages, images=images, actions=actions, reward=reward, info=info)


def write_messages(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return messages as text; the signatures of tools are left out."""
    lines = []
    for row in rows:
        for part in row["parts"]:
            text = part.get("text", "")
            if part["type"] == "image":
                text = f"<image {part['index']}: {part['width']} x {part['height']}>"
            elif _TOOLS_BEGIN in text:
                begin, end = text.index(_TOOLS_BEGIN) + len(_TOOLS_BEGIN), text.index(_TOOLS_END)
                text = f"{text[:begin]}… one JSON signature a line …{text[end:]}"
            lines.append(f"[{row['role']}] {text}")
    return "\n".join(lines)


def write_reward(played: Played) -> str:
    """Return a reward and its parts, those that are not zero."""
    parts = ", ".join(f"{name} {value:.3g}" for name, value in played.info["reward_breakdown"].items() if value)
    return f"{played.reward:.3g}" + (f" ({parts})" if parts else "")


def write_episode(played: Played) -> str:
    """Return what was said after the first observation, in order."""
    lines = []
    for action, rows in zip(played.actions, played.messages[1:], strict=False):
        lines += [f"[policy] {action}", *([write_messages(rows)] if rows else [])]
    lines.append(f"stop_reason {played.info['stop_reason']}, reward {write_reward(played)}")
    return "\n".join(lines)


def draw_episode(played: Played) -> Image.Image:
    """Draw the images in order, each under the action that led to it; boxes of an answer over image 0."""
    question = played.messages[0][-1]["parts"][-1]["text"]
    first = played.images[0][0]
    panels = [Panel(caption=f"image 0: {question}", pixels=first)]
    index = 1
    for action, images in zip(played.actions, played.images[1:], strict=False):
        for pixels in images:
            panels.append(Panel(caption=f"image {index}: {action}", pixels=pixels))
            index += 1
        answered = parse_boxes(action.partition("<answer>")[2].partition("</answer>")[0])
        if answered is not None:
            boxes = answered * np.array((first.shape[1], first.shape[0]) * 2) / 1000
            marked = draw_boxes(first, [tuple(box) for box in boxes.tolist()], numbers=False)
            panels.append(Panel(caption=f"the answer, drawn here: {action}", pixels=marked))
    panels.append(Panel(caption="the end", text=f"{played.actions[-1]}\n\nreward {write_reward(played)}"))
    return draw_row(panels)


def write_rewards(page: EnvPage) -> str:
    """Return the table of what scripted episodes earn under each rubric."""
    rows = [
        f"| episode | {' | '.join(f'`{rubric}`' for rubric in page.rubrics)} |",
        "|---" * (len(page.rubrics) + 1) + "|",
    ]
    opened = [page.open(rubric=rubric) for rubric in page.rubrics]
    try:
        record = opened[0][1]
        for name, actions in page.scripts(record, plan(replace(page, plan=_RIGHT), record)).items():
            earned = [write_reward(play(env, page.index, actions)) for env, _ in opened]
            rows.append(f"| {name} | {' | '.join(earned)} |")
    finally:
        for env, _ in opened:
            env.close()
    return "\n".join(rows)


def render_page(name: str) -> tuple[str, Image.Image]:
    """Return the page of an env with its made parts filled in, and its picture."""
    page = PAGES[name]
    env, record = page.open()
    try:
        played = play(env, page.index, plan(page, record))
    finally:
        env.close()
    shown = f"![The episode above, image by image](../images/envs/{name}.png)"
    parts = {
        "first": fence(write_messages(played.messages[0])),
        "episode": f"{fence(write_episode(played))}\n\n{shown}",
        "rewards": write_rewards(page),
    }
    return fill_parts((FOLDER / f"{name}.md").read_text(), parts), draw_episode(played)


def _vqa_scripts(record: TaskRecord, right: Actions) -> Mapping[str, Actions]:
    *looks, answer = right
    wrong = next(choice.choice_id for choice in record.task.choices if choice.choice_id != record.reference.answer)
    return {
        "the right answer at once": (answer,),
        "one look, then the right answer": right,
        "the same look four times, then the right answer": (*looks * 4, answer),
        "a wrong answer": (write_answer("A guess.", wrong),),
        "all choices as the answer": (write_answer("All.", ", ".join(c.choice_id for c in record.task.choices)),),
        "the right answer without `<think>`": (f"<answer>{record.reference.answer}</answer>",),
        "calls and no answer": tuple(looks[0].replace("visible.", f"visible, {turn}.") for turn in range(6)),
    }


def _segmentation_scripts(record: TaskRecord, right: Actions) -> Mapping[str, Actions]:
    box, stop = right
    wrong = write_call("Elsewhere.", "add_bbox", {"bbox": WRONG_BOX})
    return {
        "the right box, stop": right,
        "the right box, a wrong one, the right one again, stop": (box, wrong, box, stop),
        "the right box twice, stop": (box, box, stop),
        "a wrong box, stop": (wrong, stop),
        "the right box, then a wrong one, stop": (box, wrong, stop),
        "the right box until the turns end": (box,) * 5,
        "an `<answer>`": (write_answer("Done.", "outlined"),),
    }


def _grounding_scripts(record: TaskRecord, right: Actions) -> Mapping[str, Actions]:
    (answer,) = right
    boxes = answer.partition("<answer>")[2].partition("</answer>")[0]
    cited = "".join(f"<box>{box}</box>" for box in json.loads(boxes))
    return {
        "the right boxes": right,
        "the right boxes, each of them cited": (write_answer(cited, boxes),),
        "the right boxes, the whole image cited": (write_answer("<box>[0, 0, 1000, 1000]</box>", boxes),),
        "the right boxes after a needless look": (write_call("Look.", "zoom", {"bbox": list(MIDDLE)}), *right),
        "the whole image as the answer": (write_answer("All.", "[[0, 0, 1000, 1000]]"),),
        "no box": (write_answer("Nothing.", "[]"),),
    }


_RIGHT: Mapping[str, float] = {"right_share": 1.0, "second_look_share": 0.0}
PAGES: Mapping[str, EnvPage] = {
    "medical_vqa": EnvPage(
        env=MedicalVQAEnv,
        family="window",
        index=6,
        tools=("zoom", "window_level", "measure", "flip_rotate"),
        rubrics=("vista", "ophiuchus_published"),
        plan={"right_share": 0.0, "second_look_share": 1.0},
        scripts=_vqa_scripts,
    ),
    "interactive_segmentation": EnvPage(
        env=InteractiveSegmentationEnv,
        family="insert_mask",
        index=1,
        tools=("segment_classical",),
        rubrics=("segmentation", "segmentation_published", "ophiuchus_published"),
        plan=_RIGHT,
        scripts=_segmentation_scripts,
    ),
    "grounding": EnvPage(
        env=GroundingEnv,
        family="insert_box",
        index=2,
        tools=("zoom", "ground"),
        rubrics=("grounding", "ophiuchus_published"),
        plan=_RIGHT,
        scripts=_grounding_scripts,
    ),
}


def main(names: Sequence[str]) -> None:
    """Write pages and pictures."""
    for name in names or PAGES:
        text, picture = render_page(name)
        (FOLDER / f"{name}.md").write_text(text)
        save_picture(picture, PICTURES / f"{name}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
