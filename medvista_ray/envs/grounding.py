"""`GroundingEnv`: find what a question names, answer with boxes, and cite the places that the reasoning rests on.

After Ophiuchus (arXiv 2512.14157: boxes as answers) and GEMeX-RMCoT (arXiv 2506.17939: reasoning that cites boxes,
checked against regions). Our choices: the answer is a JSON list of boxes from 0 to 1000 of image 0, and a citation is
`<box>[x0, y0, x1, y1]</box>` inside `<think>`, in the same unit. Citations of every turn count.
"""

from __future__ import annotations

import re
from typing import ClassVar

import numpy as np

from medvista_ray.config.schema import EnvConfig
from medvista_ray.envs.protocol_text import Malformed, parse_action
from medvista_ray.envs.tool_env import Episode, ToolEnv
from medvista_ray.rewards.boxes import parse_boxes
from medvista_ray.rewards.rubric import FinishedEpisode
from medvista_ray.types.messages import AnswerKind, Task
from medvista_ray.types.protocols import TaskSource

_CITATION = re.compile(r"<box>([^<>]{1,200})</box>")
_MAX_CITATIONS = 64  # of one episode; later ones are not read


class GroundingEnv(ToolEnv):
    """Boxes as answers, boxes as evidence."""

    default_rubric: ClassVar[str] = "grounding"
    answer_kinds: ClassVar[tuple[AnswerKind, ...]] = ("boxes",)

    @classmethod
    def make_default_config(cls) -> EnvConfig:
        """Offer a closer look and candidate boxes."""
        return EnvConfig(tools=("zoom", "ground"))

    @classmethod
    def make_default_tasks(cls) -> TaskSource:
        """Return drawn inserts in real images of installed packages, whose boxes are known exactly."""
        from medvista_ray.data.sources import make_task_source

        return make_task_source("pocket", "train", families=("insert_box",), weights=(), num_tasks=0, seed=0)

    def finished(self, episode: Episode, *, answer: str | None) -> FinishedEpisode:
        """Return the actions, the answer and the cited boxes."""
        thoughts = [parse_action(action.text) for action in episode.actions]
        text = "\n".join(parsed.thought for parsed in thoughts if not isinstance(parsed, Malformed))
        cited = read_citations(text, episode.task)
        return FinishedEpisode(actions=tuple(episode.actions), answer=answer, cited_boxes=cited)


def read_citations(text: str, task: Task) -> np.ndarray:
    """Return the boxes that a text cites, float32 [K, 4] in pixels of image 0; what is no box cites nothing."""
    if not task.images:
        return np.zeros((0, 4), np.float32)
    found = [parse_boxes(match[1]) for match in list(_CITATION.finditer(text))[:_MAX_CITATIONS]]
    boxes = [box for group in found if group is not None for box in group]
    scale = np.array((task.images[0].width, task.images[0].height) * 2, np.float32) / 1000
    return np.asarray(boxes, np.float32).reshape(-1, 4) * scale
