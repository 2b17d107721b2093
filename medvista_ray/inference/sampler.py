"""Keyed sampling: a row's draws depend on its own key and on nothing else in the batch. Knows no model.

Axes: B rows, V vocabulary.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from medvista_ray.policy.distribution import gather, processed_logprobs
from medvista_ray.types.sampling import GenerateRequest, SamplingSpec


def draw_uniforms(request: GenerateRequest) -> np.ndarray:
    """Return float64 [max_new_tokens] in (0, 1), fixed by (seed, group_id, member, turn_index)."""
    key = f"{request.seed}|{request.group_id}|{request.member}|{request.turn_index}".encode()
    words = np.frombuffer(hashlib.sha256(key).digest()[:16], dtype="<u8")
    raw = np.random.Philox(key=words).random_raw(request.max_new_tokens)
    # 32 bits and half a step: never 0 or 1, also after the product with a sum of probabilities that rounds to 1
    return ((raw >> np.uint64(32)).astype(np.float64) + 0.5) * 2.0**-32


def sample(logits: torch.Tensor, uniforms: torch.Tensor, sampling: SamplingSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Pick one token per row by inverse CDF (temperature 0: the most likely one).

    Args:
        logits: [B, V].
        uniforms: float64 [B], one draw per row.
        sampling: the distribution.

    Returns:
        Token ids int64 [B] and their logprobs float32 [B], nats, under the distribution sampled from.
    """
    logprobs = processed_logprobs(logits, sampling)
    if sampling.temperature == 0:
        token_ids = logprobs.argmax(-1)
    else:
        cumulative = logprobs.double().exp().cumsum(-1)
        target = uniforms * cumulative[:, -1]
        # the first id whose cumulative probability is above the target: an id of probability 0 is never it
        token_ids = torch.searchsorted(cumulative, target[:, None], right=True).squeeze(-1)
    return token_ids, gather(logprobs, token_ids)
