"""What the learner trains on. Axes: L tokens of one sample; B rows and W padded width of a microbatch."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from medvista_ray.types.trajectories import ImageSpan, Trajectory, VersionSpan


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingSample:
    """One token sequence to train on; per-token arrays are read-only and have length L.

    Example, a two-turn trajectory of a group with rewards (2, 1): `token_ids` = prompt, action, observation, action;
    `loss_mask` = 0…0 1…1 0…0 1…1; `advantages` = 0.0 off the mask and +1.0 on every action token of the better member.
    """

    group_id: str
    member: int
    token_ids: np.ndarray = field(repr=False)  # int32 [L] observations and actions, expanded, in order
    loss_mask: np.ndarray = field(repr=False)  # bool [L] True on action tokens
    logprobs: np.ndarray = field(repr=False)  # float32 [L] nats, from the engine; 0.0 off the mask
    advantages: np.ndarray = field(repr=False)  # float32 [L] 0.0 off the mask
    image_spans: tuple[ImageSpan, ...]  # in order of offset
    version_spans: tuple[VersionSpan, ...]  # cover the action tokens
    reward: float = 0.0

    def __post_init__(self) -> None:
        per_token = (self.token_ids, self.loss_mask, self.logprobs, self.advantages)
        if len({values.shape for values in per_token}) != 1:
            raise ValueError(f"unequal shapes: {[values.shape for values in per_token]}")
        for values in per_token:
            values.flags.writeable = False

    @property
    def min_policy_version(self) -> int:
        """Return the oldest policy version that sampled a token here."""
        return min(span.policy_version for span in self.version_spans)

    def staleness(self, train_from_version: int) -> int:
        """Count the versions between the oldest token and the weights that a train step starts from."""
        return train_from_version - self.min_policy_version


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTotals:
    """The global denominators of one batch, the same on every rank."""

    num_groups: int
    num_samples: int
    num_action_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchShard:
    """The part of one leased batch that one rank trains, with the denominators of the whole batch."""

    lease_id: str
    rank: int
    world_size: int
    train_from_version: int
    samples: tuple[TrainingSample, ...]
    totals: BatchTotals


def make_training_sample(trajectory: Trajectory, advantage: float) -> TrainingSample:
    """Spread the advantage of a trajectory over its action tokens."""
    return TrainingSample(
        group_id=trajectory.group_id,
        member=trajectory.member,
        token_ids=trajectory.token_ids,
        loss_mask=trajectory.loss_mask,
        logprobs=trajectory.logprobs,
        advantages=np.where(trajectory.loss_mask, np.float32(advantage), np.float32(0.0)).astype(np.float32),
        image_spans=trajectory.image_spans,
        version_spans=trajectory.version_spans,
        reward=trajectory.reward,
    )
