"""Losses against numbers worked out by hand, and the sum rule over microbatches and ranks."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medvista_ray.config.schema import LearnerConfig
from medvista_ray.learner.losses import (
    MAXIMA,
    SUMS,
    ActionTokens,
    LossResult,
    clipped_objective,
    compute_policy_loss,
    k3,
    token_share,
)
from medvista_ray.types.samples import BatchTotals

LOSSES = ("grpo", "dapo", "dr_grpo", "gspo")
TOTALS = BatchTotals(num_groups=1, num_samples=2, num_action_tokens=3)
# Two sequences: two action tokens with advantage +1, one with advantage -2.
ROLLOUT = [math.log(0.5), math.log(0.25), math.log(0.4)]
RATIO = [1.1, 1.6, 0.7]  # learner / rollout


def make_tokens(ratio: list[float] = RATIO, *, at_rollout: bool = True) -> ActionTokens:
    """Return tokens whose proximal policy is the engine's (or, else, the learner itself)."""
    rollout = torch.tensor(ROLLOUT)
    learner = (rollout + torch.tensor(ratio).log()).requires_grad_()
    return ActionTokens(
        learner_logprobs_T=learner,
        rollout_logprobs_T=rollout,
        advantages_T=torch.tensor([1.0, 1.0, -2.0]),
        sequence_T=torch.tensor([0, 0, 1]),
        is_held_version_T=torch.tensor([True, False, True]),
        entropy_T=torch.tensor([0.1, 0.2, 0.3]),
        proximal_logprobs_T=rollout if at_rollout else None,
    )


def config_for(loss: str, **changes: float) -> LearnerConfig:
    return LearnerConfig(loss=loss, constant_length=4, **changes)  # type: ignore[arg-type]


def gradient(tokens: ActionTokens, result: LossResult) -> list[float]:
    (grad,) = torch.autograd.grad(result.loss, tokens.learner_logprobs_T)
    return [float(value) for value in grad]


def sums_of(result: LossResult) -> dict[str, float]:
    return dict(zip(SUMS, result.sums.tolist(), strict=True))


@pytest.mark.parametrize(
    ("loss", "expected", "expected_gradient"),
    [
        # min(r A, clip(r) A) = 1.1, 1.2 (clipped at 1.2), -1.6 (clipped at 0.8)
        ("grpo", -(0.5 * (1.1 + 1.2) / 2 + 0.5 * -1.6), [-1.1 / 4, 0.0, 0.0]),
        ("dapo", -(1.1 + 1.2 - 1.6) / 3, [-1.1 / 3, 0.0, 0.0]),
        ("dr_grpo", -(1.1 + 1.2 - 1.6) / 8, [-1.1 / 8, 0.0, 0.0]),
        # sequence ratios sqrt(1.1 * 1.6) = 1.3266 (clipped) and 0.7 (clipped): no gradient at all
        ("gspo", -(0.5 * 1.2 + 0.5 * -1.6), [0.0, 0.0, 0.0]),
    ],
)
def test_losses_by_hand(loss: str, expected: float, expected_gradient: list[float]) -> None:
    tokens = make_tokens()
    result = compute_policy_loss(tokens, TOTALS, config_for(loss))
    assert result.loss.item() == pytest.approx(expected, rel=1e-6)
    assert gradient(tokens, result) == pytest.approx(expected_gradient, abs=1e-7)


def test_gspo_spreads_the_gradient_of_a_sequence_ratio_evenly() -> None:
    tokens = make_tokens([1.1, 1.0, 1.0])
    result = compute_policy_loss(tokens, TOTALS, config_for("gspo"))
    s = math.sqrt(1.1)
    assert result.loss.item() == pytest.approx(-(0.5 * s + 0.5 * -2.0), rel=1e-6)
    assert gradient(tokens, result) == pytest.approx([-0.25 * s, -0.25 * s, 1.0], rel=1e-5)


def test_clip_higher_moves_the_upper_bound_only() -> None:
    ratio, advantages = torch.tensor([1.25, 0.75]), torch.tensor([1.0, -1.0])
    assert clipped_objective(ratio, advantages, clip_low=0.2, clip_high=0.28).tolist() == pytest.approx([1.25, -0.8])
    assert clipped_objective(ratio, advantages, clip_low=0.2, clip_high=0.2).tolist() == pytest.approx([1.2, -0.8])


def test_the_clip_never_helps_a_bad_move() -> None:
    # an advantage < 0 on a grown probability, > 0 on a shrunken one: the gradient stays
    ratio, advantages = torch.tensor([3.0, 0.1]), torch.tensor([-1.0, 1.0])
    assert clipped_objective(ratio, advantages, clip_low=0.2, clip_high=0.2).tolist() == pytest.approx([-3.0, 0.1])


@pytest.mark.parametrize("loss", LOSSES)
def test_importance_weights_are_truncated_and_carry_no_gradient(loss: str) -> None:
    tokens = make_tokens([1.5, 4.0, 0.5], at_rollout=False)  # learner == proximal: ratio 1, weight = mismatch
    result = compute_policy_loss(tokens, TOTALS, config_for(loss, importance_cap=2.0))
    weights = [2.0, 2.0, 0.5] if loss == "gspo" else [1.5, 2.0, 0.5]  # gspo: sqrt(1.5 * 4) = 2.45 for the sequence
    share = token_share(tokens.sequence_T, TOTALS, config_for(loss)).tolist()
    terms = [s * w * a for s, w, a in zip(share, weights, [1.0, 1.0, -2.0], strict=True)]
    assert result.loss.item() == pytest.approx(-sum(terms), rel=1e-5)
    assert gradient(tokens, result) == pytest.approx([-term for term in terms], rel=1e-5)
    assert sums_of(result)["capped_fraction"] == (2.0 if loss == "gspo" else 1.0)


def test_without_a_cap_the_ratio_is_learner_over_rollout() -> None:
    uncapped = compute_policy_loss(make_tokens(at_rollout=False), TOTALS, config_for("dapo", importance_cap=0.0))
    assert uncapped.loss.item() == pytest.approx(-(1.1 + 1.2 - 1.6) / 3, rel=1e-6)
    assert sums_of(uncapped)["importance_weight"] == 3.0
    assert sums_of(uncapped)["capped_fraction"] == 0.0


def test_kl_term_by_hand() -> None:
    tokens = make_tokens([1.0, 1.0, 1.0])
    reference = tokens.learner_logprobs_T.detach() + torch.tensor([math.log(2.0), 0.0, 0.0])
    tokens = replace(tokens, reference_logprobs_T=reference)
    result = compute_policy_loss(tokens, TOTALS, config_for("dapo", kl_coefficient=0.3))
    penalty = 2.0 - 1.0 - math.log(2.0)
    assert result.loss.item() == pytest.approx(-(1.0 + 1.0 - 2.0) / 3 + 0.3 * penalty / 3, rel=1e-5)
    # d/dx of k3(log ref - x) = 1 - ref / learner = -1
    assert gradient(tokens, result)[0] == pytest.approx(-1.0 / 3 - 0.3 / 3, rel=1e-5)
    assert sums_of(result)["kl_reference"] == pytest.approx(penalty, rel=1e-5)


@settings(deadline=None)
@given(st.lists(st.floats(-60, 60, allow_nan=False), min_size=1, max_size=20))
def test_k3_is_finite_and_never_negative(log_ratios: list[float]) -> None:
    values = k3(torch.tensor(log_ratios, dtype=torch.float64))
    assert torch.isfinite(values).all()
    assert (values >= -1e-12).all()


def test_statistics_by_hand() -> None:
    result = compute_policy_loss(make_tokens(), TOTALS, config_for("dapo"))
    sums = sums_of(result)
    assert sums["loss"] == pytest.approx(result.loss.item())
    assert sums["clip_fraction"] == 2.0
    assert sums["entropy"] == pytest.approx(0.6)
    assert sums["ratio"] == pytest.approx(sum(RATIO), rel=1e-6)
    assert sums["kl_rollout"] == pytest.approx(sum(r - 1 - math.log(r) for r in RATIO), rel=1e-5)
    maxima = dict(zip(MAXIMA, result.maxima.tolist(), strict=True))
    assert maxima["ratio"] == pytest.approx(1.6, rel=1e-6)
    assert maxima["abs_logprob_diff"] == pytest.approx(-math.log(0.7), rel=1e-5)  # 1.6 was sampled by another version


@pytest.mark.parametrize("loss", LOSSES)
@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=6), cut=st.integers(0, 6), seed=st.integers(0, 999))
def test_parts_add_up_to_the_whole_batch(loss: str, lengths: list[int], cut: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    num_tokens = sum(lengths)
    totals = BatchTotals(num_groups=1, num_samples=len(lengths), num_action_tokens=num_tokens)
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    rollout, noise, advantages = -torch.rand((3, num_tokens), generator=generator, dtype=torch.float64)
    learner = (rollout + noise - 0.5).requires_grad_()

    def part(rows: torch.Tensor) -> LossResult:
        index = torch.nonzero(torch.isin(sequence, rows)).flatten()
        local = torch.searchsorted(rows, sequence[index])
        tokens = ActionTokens(
            learner_logprobs_T=learner[index],
            rollout_logprobs_T=rollout[index],
            advantages_T=advantages[index] + 0.5,
            sequence_T=local,
            is_held_version_T=torch.ones_like(local, dtype=torch.bool),
            entropy_T=torch.zeros(len(index)),
        )
        return compute_policy_loss(tokens, totals, config_for(loss, importance_cap=0.0))

    rows = torch.arange(len(lengths))
    whole, first, second = part(rows), part(rows[:cut]), part(rows[cut:])  # one part may be empty
    torch.testing.assert_close(first.loss + second.loss, whole.loss, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(first.sums + second.sums, whole.sums, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(torch.maximum(first.maxima, second.maxima), whole.maxima)
    (grad,) = torch.autograd.grad(first.loss + second.loss, learner, retain_graph=True)
    (whole_grad,) = torch.autograd.grad(whole.loss, learner)
    torch.testing.assert_close(grad, whole_grad, rtol=1e-6, atol=1e-9)


def test_huge_ratios_stay_finite() -> None:
    tokens = make_tokens([1e30, 1e-30, 1.0])
    result = compute_policy_loss(tokens, TOTALS, config_for("grpo"))
    assert torch.isfinite(result.loss)
    assert all(math.isfinite(value) for value in gradient(tokens, result))
    assert torch.isfinite(result.sums).all()
