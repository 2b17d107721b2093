"""Configs of runs that take seconds, and an env whose rewards differ by member.

A random policy earns equal rewards in every group, which are filtered and never trained; `MemberRewardEnv` rewards
every second member instead. Processes of a run import this module by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvista_ray.config.schema import (
    BufferConfig,
    ClusterConfig,
    DataConfig,
    EnvConfig,
    InferenceConfig,
    LearnerConfig,
    PolicyConfig,
    RolloutConfig,
    RunConfig,
    TrainConfig,
)
from medvista_ray.data.sources import make_task_source
from medvista_ray.envs.medical_vqa import MedicalVQAEnv
from medvista_ray.rewards.rubric import FinishedEpisode, Score
from medvista_ray.types.messages import Reference, Task
from medvista_ray.types.protocols import TaskSource


class _MemberRubric:
    def __init__(self) -> None:
        self.member = 0

    def score(self, episode: FinishedEpisode, *, task: Task, reference: Reference) -> Score:
        reward = float(self.member % 2)
        return Score(reward=reward, breakdown={"member": reward})


class MemberRewardEnv(MedicalVQAEnv):
    """Rewards every second member of a group, whatever it does."""

    def __init__(self, **kwargs: Any) -> None:
        self._by_member = _MemberRubric()
        super().__init__(rubric=self._by_member, **kwargs)

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> Any:
        trajectory_id = str((options or {}).get("trajectory_id", ":0"))
        self._by_member.member = int(trajectory_id.rpartition(":")[2])
        return super().reset(seed=seed, options=options)


def make_small_config(
    policy: Path,
    *,
    num_tasks: int = 16,
    world_size: int = 1,
    num_engines: int = 1,
    buffer: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    cluster: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Return a run of tiny groups that train; the tests change what they are about."""
    return RunConfig(
        policy=PolicyConfig(path=str(policy), device="cpu"),
        data=DataConfig(source="pocket", families=("zoom", "structure"), weights=(0.5, 0.5), num_tasks=num_tasks),
        env=EnvConfig(
            target="small_runs:MemberRewardEnv",
            tool_prompt="names",
            list_choices=False,
            view_size_px=84,
            max_turns=3,
            max_action_tokens=24,
            max_context_tokens=512,
        ),
        rollout=RolloutConfig(group_size=4, num_shards=2, slots_per_shard=4, blob_cache_mb=16),
        buffer=BufferConfig(**{"groups_per_step": 2, "max_concurrent": 4, **(buffer or {})}),
        inference=InferenceConfig(num_engines=num_engines),
        learner=LearnerConfig(lr=1e-4, world_size=world_size),
        train=TrainConfig(**{"probe_every": 4, "checkpoint_every": 3, "no_progress_s": 60.0, **(train or {})}),
        cluster=ClusterConfig(**(cluster or {})),
    )


def make_small_tasks(config: RunConfig) -> TaskSource:
    """Return the training tasks of a config."""
    data = config.data
    return make_task_source(
        data.source,
        "train",
        families=data.families,
        weights=data.weights,
        num_tasks=data.num_tasks,
        seed=config.seed,
    )
