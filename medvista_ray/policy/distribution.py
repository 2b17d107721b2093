"""The distribution that is sampled from and trained on: one function for engine and learner. Knows logits only.

Axis: V vocabulary.
"""

from __future__ import annotations

import torch

from medvista_ray.types.sampling import SamplingSpec


def processed_logprobs(logits: torch.Tensor, sampling: SamplingSpec) -> torch.Tensor:
    """Return float32 [..., V] nats: log-softmax of logits / temperature, banned ids at -inf.

    Temperature 0 (greedy) reports the distribution at temperature 1.
    """
    scaled = logits.float()
    if sampling.temperature not in (0.0, 1.0):
        scaled = scaled / sampling.temperature
    if sampling.banned_token_ids:
        banned = torch.tensor(sampling.banned_token_ids, device=logits.device)
        scaled = scaled.index_fill(-1, banned, float("-inf"))
    return torch.log_softmax(scaled, dim=-1)


def gather(logprobs: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Pick [...] from [..., V]: the logprob of each token."""
    return logprobs.gather(-1, token_ids.long().unsqueeze(-1)).squeeze(-1)
