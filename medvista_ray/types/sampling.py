"""What is asked of an engine, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medvista_ray.types.trajectories import ImageSpan, VersionSpan


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSpec:
    """The distribution that is sampled from: logits / temperature with banned ids at -inf.

    Engine and learner apply the same spec. Temperature 0 is greedy and never trained on.
    """

    temperature: float = 1.0
    banned_token_ids: tuple[int, ...] = ()
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be >= 0, got {self.temperature}")
        if set(self.banned_token_ids) & set(self.stop_token_ids):
            raise ValueError("a stop token cannot be banned")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GenerateRequest:
    """One turn to sample. Draws are keyed by (seed, group_id, member, turn_index)."""

    group_id: str
    member: int
    turn_index: int
    token_ids: np.ndarray  # int32 [P] the whole stream so far, expanded
    image_spans: tuple[ImageSpan, ...]
    max_new_tokens: int
    sampling: SamplingSpec
    seed: int = 0

    @property
    def sort_key(self) -> tuple[tuple[int, ...], str, int, int]:
        """Order requests by group and member, so that a batch is the same in every run; other ids come first."""
        parts = self.group_id.split("/")
        numbers = tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()
        return numbers, self.group_id, self.member, self.turn_index


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GenerateResult:
    """The sampled action. Spans count from the first action token."""

    token_ids: np.ndarray  # int32 [A] the stop token included
    logprobs: np.ndarray  # float32 [A] nats
    version_spans: tuple[VersionSpan, ...]
    prompt_length: int  # tokens of the prompt as the engine saw it, expanded
    stopped: bool  # False: the token limit ended the action


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightUpdate:
    """One full set of weights on disk, as an engine may load it."""

    policy_version: int
    path: str  # a safetensors file that every engine can read
    digest: str  # SHA-256 of the file, hex
