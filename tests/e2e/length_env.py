"""An env whose reward differs between the members of a group even under random weights, so that every group trains."""

from typing import Any

from medvista_ray.envs.medical_vqa import MedicalVQAEnv
from medvista_ray.rewards.rubric import FinishedEpisode, Score
from medvista_ray.types.messages import Reference, Task


class LengthRubric:
    """Pays for the characters of the first action."""

    def score(self, episode: FinishedEpisode, *, task: Task, reference: Reference) -> Score:
        """Score a finished episode."""
        length = len(episode.actions[0].text) / 100 if episode.actions else 0.0
        return Score(reward=length, breakdown={"length": length})


class LengthEnv(MedicalVQAEnv):
    """What `env.target=length_env:LengthEnv` names."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(rubric=LengthRubric(), **parts)
