"""Policy-gradient losses over action tokens, as pure tensor functions. Knows no model, rank or optimizer.

Axis: T action tokens of one microbatch, whole sequences one after another; R sequences.

Every loss is a sum of per-token terms with global denominators, so that the losses (and gradients) of microbatches and
ranks *add up* to those of the whole batch on one rank. Three distributions meet in it: *rollout* (the engine that
sampled), *proximal* (the learner before the first update of this train step), *learner* (the weights being trained).
With `importance_cap` > 0 the clipped ratio is learner / proximal and every term is weighted by min(proximal / rollout,
cap): truncated importance sampling corrects engine mismatch and staleness (decoupled PPO, arXiv:2110.00641 and
arXiv:2505.24298; truncation as in arXiv:1802.01561). With `importance_cap` = 0 the ratio is learner / rollout and the
clip alone bounds it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medvista_ray.config.schema import LearnerConfig
from medvista_ray.types.samples import BatchTotals

MAX_LOG_RATIO = 20.0  # exp() stays finite: inf * 0.0 would be nan
SUMS = (  # sums over action tokens, except the first, which is normalised already
    "loss",
    "clip_fraction",
    "entropy",
    "kl_rollout",
    "kl_reference",
    "ratio",
    "importance_weight",
    "capped_fraction",
)
MAXIMA = ("ratio", "abs_logprob_diff")  # over action tokens, the second over those of the version held; -1 without any


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ActionTokens:
    """What a loss needs of the action tokens of one microbatch; only `learner_logprobs_T` carries a gradient."""

    learner_logprobs_T: Tensor  # float32, nats, under the distribution sampled from
    rollout_logprobs_T: Tensor  # float32, nats, from the engine
    advantages_T: Tensor  # float32
    sequence_T: Tensor  # int64, 0..R-1: which sequence a token belongs to
    is_held_version_T: Tensor  # bool: sampled by the version that this train step starts from
    entropy_T: Tensor  # float32, nats, detached
    proximal_logprobs_T: Tensor | None = None  # None: the learner has not been updated in this train step
    reference_logprobs_T: Tensor | None = None  # initial weights; None without a KL term


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossResult:
    """A loss to differentiate, and what to log of it."""

    loss: Tensor  # scalar; adds up over microbatches and ranks
    sums: Tensor  # float64 [len(SUMS)], detached; adds up
    maxima: Tensor  # float64 [len(MAXIMA)], detached


def compute_policy_loss(
    tokens: ActionTokens, totals: BatchTotals, config: LearnerConfig, *, scale: float = 1.0
) -> LossResult:
    """Return the loss of one microbatch; `scale` multiplies it (optimizer minibatches share one batch's totals)."""
    learner = tokens.learner_logprobs_T
    proximal = learner.detach() if tokens.proximal_logprobs_T is None else tokens.proximal_logprobs_T
    old = proximal if config.importance_cap > 0 else tokens.rollout_logprobs_T
    log_ratio = learner - old
    log_mismatch = (proximal - tokens.rollout_logprobs_T).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if config.loss == "gspo":
        log_ratio = sequence_mean(log_ratio, tokens.sequence_T)
        log_mismatch = sequence_mean(log_mismatch, tokens.sequence_T)
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    weight, is_capped = importance_weight(log_mismatch.exp(), cap=config.importance_cap)
    objective = weight * clipped_objective(
        ratio, tokens.advantages_T, clip_low=config.clip_low, clip_high=config.clip_high
    )
    if tokens.reference_logprobs_T is None:
        kl_reference = torch.zeros_like(objective)
    else:
        kl_reference = k3(tokens.reference_logprobs_T - learner)
    share = token_share(tokens.sequence_T, totals, config) * scale
    loss = -(share * (objective - config.kl_coefficient * kl_reference)).sum()
    with torch.no_grad():
        drift = learner - tokens.rollout_logprobs_T
        per_token = (
            is_clipped(ratio, tokens.advantages_T, clip_low=config.clip_low, clip_high=config.clip_high),
            tokens.entropy_T,
            k3(drift),
            kl_reference,
            ratio,
            weight,
            is_capped,
        )
        sums = torch.stack([loss.double(), *(values.double().sum() for values in per_token)])
        maxima = torch.stack([largest(ratio), largest(drift.abs()[tokens.is_held_version_T])])
    return LossResult(loss=loss, sums=sums, maxima=maxima)


def clipped_objective(ratio_T: Tensor, advantages_T: Tensor, *, clip_low: float, clip_high: float) -> Tensor:
    """Return min(r A, clip(r, 1 - low, 1 + high) A), PPO's objective (arXiv:1707.06347).

    `clip_high` > `clip_low` is DAPO's clip-higher (arXiv:2503.14476, section 3.1).
    """
    clipped = ratio_T.clamp(1.0 - clip_low, 1.0 + clip_high)
    return torch.minimum(ratio_T * advantages_T, clipped * advantages_T)


def importance_weight(mismatch_T: Tensor, *, cap: float) -> tuple[Tensor, Tensor]:
    """Return min(proximal / rollout, cap) and where the cap bites (bool); ones and nowhere with cap 0."""
    if cap == 0:
        return torch.ones_like(mismatch_T), torch.zeros_like(mismatch_T, dtype=torch.bool)
    return mismatch_T.clamp(max=cap), mismatch_T > cap


def is_clipped(ratio_T: Tensor, advantages_T: Tensor, *, clip_low: float, clip_high: float) -> Tensor:
    """Return where the clip takes the gradient away (bool)."""
    too_high = (ratio_T > 1.0 + clip_high) & (advantages_T > 0)
    return too_high | ((ratio_T < 1.0 - clip_low) & (advantages_T < 0))


def token_share(sequence_T: Tensor, totals: BatchTotals, config: LearnerConfig) -> Tensor:
    """Return the weight of each token in the batch loss: this is what tells the variants apart.

    - `grpo` (arXiv:2402.03300, equation 3): mean over the tokens of a sequence, then mean over sequences;
    - `gspo` (arXiv:2507.18071, section 4): one ratio for a sequence, then as `grpo`;
    - `dapo` (arXiv:2503.14476, section 3.3): mean over all action tokens of the batch;
    - `dr_grpo` (arXiv:2503.20783, section 3.2): sum over tokens by a constant length, mean over sequences.
    """
    if config.loss == "dapo":
        return torch.full(sequence_T.shape, 1.0 / max(totals.num_action_tokens, 1), device=sequence_T.device)
    if config.loss == "dr_grpo":
        constant = 1.0 / (max(totals.num_samples, 1) * config.constant_length)
        return torch.full(sequence_T.shape, constant, device=sequence_T.device)
    return 1.0 / (max(totals.num_samples, 1) * sequence_lengths(sequence_T)[sequence_T].float())


def sequence_lengths(sequence_T: Tensor) -> Tensor:
    """Count the action tokens of each sequence, int64 [R]."""
    return torch.bincount(sequence_T)


def sequence_mean(values_T: Tensor, sequence_T: Tensor) -> Tensor:
    """Replace each value by the mean of its sequence, [T]; in the exponent this is GSPO's length-normalised ratio."""
    lengths_R = sequence_lengths(sequence_T)
    sums_R = torch.zeros(lengths_R.shape, dtype=values_T.dtype, device=values_T.device)
    means_R = sums_R.index_add(0, sequence_T, values_T) / lengths_R.clamp(min=1)
    return means_R[sequence_T]


def k3(log_ratio_T: Tensor) -> Tensor:
    """Return exp(x) - 1 - x >= 0, the low-variance estimate of KL(p || q) from samples of p, with x = log(q / p).

    The k3 estimator of http://joschu.net/blog/kl-approx.html, equation 4 of arXiv:2402.03300.
    """
    bounded = log_ratio_T.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.expm1(bounded) - bounded


def largest(values_T: Tensor) -> Tensor:
    """Return the largest value as float64, -1 where there is none."""
    return values_T.double().max() if values_T.numel() else values_T.new_full((), -1.0, dtype=torch.float64)
