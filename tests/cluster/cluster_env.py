"""An env whose rewards differ by member: a random policy earns equal ones, which are filtered and never trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medvista_ray.envs.medical_vqa import MedicalVQAEnv
from medvista_ray.rewards.rubric import FinishedEpisode, Score
from medvista_ray.types.messages import Reference, Task


class _MemberRubric:
    """Scores an episode by its place in the group."""

    def __init__(self) -> None:
        self.member = 0

    def score(self, episode: FinishedEpisode, *, task: Task, reference: Reference) -> Score:
        reward = float(self.member % 2)
        return Score(reward=reward, breakdown={"member": reward})


class MemberRewardEnv(MedicalVQAEnv):
    """Rewards every second member."""

    def __init__(self, **kwargs: Any) -> None:
        self._by_member = _MemberRubric()
        super().__init__(rubric=self._by_member, **kwargs)

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> Any:
        trajectory_id = str((options or {}).get("trajectory_id", "0:0"))
        self._by_member.member = int(trajectory_id.rpartition(":")[2]) if ":" in trajectory_id else 0
        return super().reset(seed=seed, options=options)
