"""One generate batch: left-padded prefill, then one token a step for the rows that still run. Knows no weights.

Equal prompts (the first turn of a group) are computed once and their cache rows copied.

Axes: B rows of the batch, U distinct prompts, R rows that still run, W padded prompt width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from medvista_ray.inference.sampler import draw_uniforms, sample
from medvista_ray.policy.forward import ImageFeatures
from medvista_ray.policy.inputs import PolicyInputs, PolicyRow
from medvista_ray.policy.loading import Policy
from medvista_ray.types.sampling import GenerateRequest, SamplingSpec

_SHRINK_BELOW = 0.75  # copying the cache pays when at least a quarter of its rows has stopped


def distinct_prompts(requests: Sequence[GenerateRequest]) -> tuple[list[PolicyRow], np.ndarray]:
    """Return the distinct prompts in order of first use, and int64 [B] which one each request has."""
    order: dict[tuple[bytes, tuple[object, ...]], int] = {}
    rows: list[PolicyRow] = []
    which = np.empty(len(requests), np.int64)
    for i, request in enumerate(requests):
        key = (np.ascontiguousarray(request.token_ids, np.int64).tobytes(), tuple(request.image_spans))
        if key not in order:
            order[key] = len(rows)
            rows.append(PolicyRow(token_ids=request.token_ids, image_spans=request.image_spans))
        which[i] = order[key]
    return rows, which


class _Batch:
    """State of one running batch; `rows` maps its R rows to requests."""

    def __init__(self, requests: Sequence[GenerateRequest], policy: Policy) -> None:
        self.requests = requests
        self.policy = policy
        self.sampling: SamplingSpec = requests[0].sampling
        self.stop_ids = np.array(self.sampling.stop_token_ids, np.int64)
        self.limits = np.array([request.max_new_tokens for request in requests], np.int64)
        self.uniforms = np.zeros((len(requests), int(self.limits.max())), np.float64)
        for i, request in enumerate(requests):
            self.uniforms[i, : request.max_new_tokens] = draw_uniforms(request)
        self.token_ids = np.zeros(self.uniforms.shape, np.int64)
        self.logprobs = np.zeros(self.uniforms.shape, np.float32)
        self.counts = np.zeros(len(requests), np.int64)
        self.stopped = np.zeros(len(requests), bool)
        self.rows = np.arange(len(requests))

    def pick(self, logits: torch.Tensor, step: int) -> torch.Tensor:
        """Sample token number `step` of every row [R], record it for rows that still run, and return the ids."""
        uniforms = torch.from_numpy(self.uniforms[self.rows, step]).to(logits.device)
        picked, logprobs = sample(logits, uniforms, self.sampling)
        host = picked.cpu().numpy()
        running = self.running()
        rows = self.rows[running]
        self.token_ids[rows, step] = host[running]
        self.logprobs[rows, step] = logprobs.cpu().numpy()[running]
        self.counts[rows] = step + 1
        self.stopped[rows] = np.isin(host[running], self.stop_ids)
        return picked

    def running(self) -> np.ndarray:
        """Return bool [R]: neither stopped nor at its limit."""
        return ~self.stopped[self.rows] & (self.counts[self.rows] < self.limits[self.rows])


@torch.no_grad()
def generate(
    requests: Sequence[GenerateRequest],
    policy: Policy,
    inputs: PolicyInputs,
    which: np.ndarray,
    features: ImageFeatures | None,
) -> list[tuple[np.ndarray, np.ndarray, bool]]:
    """Return (token ids int32 [A], logprobs float32 [A] nats, stopped by a stop id) of each request.

    Args:
        requests: at least one, all with the same `sampling`.
        policy: what samples.
        inputs: the U distinct prompts, padded on the left.
        which: int64 [B] prompt of each request.
        features: of `inputs.digests`; None without images.
    """
    batch = _Batch(requests, policy)
    logits, cache = _prefill(policy, inputs, features)
    select = torch.from_numpy(which).to(logits.device)
    if len(which) != logits.shape[0] or (which != np.arange(len(which))).any():
        logits = logits[select]
        cache.batch_select_indices(select)
    positions = inputs.next_positions[select]
    steps = int(batch.limits.max())
    mask = _decode_mask(inputs, select, steps)
    for step in range(steps):
        picked = batch.pick(logits, step)
        running = batch.running()
        if step + 1 == steps or not running.any():
            break
        if running.mean() < _SHRINK_BELOW:
            keep = torch.from_numpy(np.flatnonzero(running)).to(logits.device)
            cache.batch_select_indices(keep)
            picked, positions, batch.rows = picked[keep], positions[keep], batch.rows[running]
            mask = None if mask is None else mask[keep]
        seen = None if mask is None else mask[..., : inputs.width + step + 1]
        logits = policy.network.step(picked, positions, seen, cache)
        positions = positions + 1
    return [
        (batch.token_ids[i, :count].astype(np.int32), batch.logprobs[i, :count].copy(), bool(batch.stopped[i]))
        for i, count in enumerate(batch.counts)
    ]


def _prefill(policy: Policy, inputs: PolicyInputs, features: ImageFeatures | None) -> tuple[torch.Tensor, Any]:
    from transformers import DynamicCache

    cache = DynamicCache(config=policy.model.config.text_config)
    last = torch.arange(1, len(inputs.lengths) + 1, device=inputs.token_ids.device) * inputs.width - 1
    return policy.network(inputs, features=features, cache=cache, positions_to_project=last), cache


def _decode_mask(inputs: PolicyInputs, select: torch.Tensor, steps: int) -> torch.Tensor | None:
    """Return bool [B, 1, 1, W + steps], False on left padding; None when no row is padded."""
    if inputs.attention_mask is None:
        return None
    prompt = inputs.attention_mask[:, :, -1:, :][select]
    return torch.nn.functional.pad(prompt, (0, steps), value=True)
