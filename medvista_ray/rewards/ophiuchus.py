"""The rubric of Ophiuchus (arXiv 2512.14157): answer + format + a bonus for right answers with a tool. Can be farmed.

A needless call before a right answer adds 2: it doubles the reward of a right text or choice (2 to 4), and makes 4 to 6
of the best boxes. So training on it teaches to call always: it is named `ophiuchus_published`, and no env takes it by
default. Our reading: the three parts are independent, an answer counts without the right format. Our choices:
`grading.py` decides what is right; boxes as an answer are paid by the tiers of its masks, over their box score
(`boxes.py`); a mask is the last one of the episode.
"""

from __future__ import annotations

from dataclasses import dataclass

from medvista_ray.rewards.boxes import grade_boxes, pay_tier
from medvista_ray.rewards.grading import MAX_ANSWER_CHARS, is_correct
from medvista_ray.rewards.masks import get_wanted_mask, mask_iou
from medvista_ray.rewards.rubric import FinishedEpisode, Score, make_score
from medvista_ray.rewards.vista import is_complete
from medvista_ray.types.messages import Reference, Task

FORMAT, TOOL_BONUS = 1.0, 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OphiuchusPublishedRubric:
    """S_answer (1 or 0; for masks, by our choice for boxes, 3, 2, 1, 0) + S_format (1 or 0) + S_tool (2 or 0)."""

    def score(self, episode: FinishedEpisode, *, task: Task, reference: Reference) -> Score:
        """Score a finished episode; `breakdown` has `correct`, `format` and `tool_bonus`."""
        answer = _grade(episode, task=task, reference=reference)
        used_tool = any(action.used_tool for action in episode.actions)
        return make_score(
            correct=answer,
            format=FORMAT if is_complete(episode) else 0.0,
            tool_bonus=TOOL_BONUS if answer > 0 and used_tool else 0.0,
        )


def _grade(episode: FinishedEpisode, *, task: Task, reference: Reference) -> float:
    if task.answers_with == "mask":
        wanted = get_wanted_mask(reference)
        return pay_tier(mask_iou(episode.masks[-1], wanted)) if episode.masks else 0.0
    if episode.answer is None or len(episode.answer) > MAX_ANSWER_CHARS:
        return 0.0
    if task.answers_with == "boxes":
        return pay_tier(grade_boxes(episode.answer, task=task, reference=reference))
    return float(is_correct(episode.answer, task=task, reference=reference))
