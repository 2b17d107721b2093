"""One rank: gradients before the ack, updates after it, parity, minibatches, weight files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from learner_batches import make_shards

from medvista_ray.errors import RenderError, RunFailedError
from medvista_ray.learner.rank import LearnerRank
from medvista_ray.learner.weight_files import weight_file_versions
from medvista_ray.policy.image_processor import ImageProcessor
from medvista_ray.policy.loading import load_policy
from medvista_ray.types.samples import BatchShard, TrainingSample


def weights(rank: LearnerRank) -> dict[str, torch.Tensor]:
    return rank.full_state_dict()


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def shard_of(samples: Sequence[TrainingSample], *, train_from_version: int = 0) -> BatchShard:
    return make_shards([samples], train_from_version=train_from_version)[0]


def on_policy(
    rank: LearnerRank, samples: Sequence[TrainingSample], images: dict[str, bytes], *, shift: float = 0.0
) -> list[TrainingSample]:
    """Return the samples as an engine with the same weights would have scored them, off by `shift` nats."""
    return [
        replace(sample, logprobs=logprobs + np.float32(shift) * sample.loss_mask)
        for sample, logprobs in zip(samples, rank.compute_logprobs(samples, images), strict=True)
    ]


def test_a_refused_ack_leaves_no_trace(make_rank, samples, images) -> None:
    rank, control = make_rank(), make_rank()
    before = weights(rank)
    rank.begin_batch(shard_of(samples[:2]), images)
    rank.drop_gradients()
    assert_same(weights(rank), before)
    assert rank.num_updates == 0
    for learner in (rank, control):
        learner.begin_batch(shard_of(samples), images)
        learner.finish_batch()
    assert_same(weights(rank), weights(control))
    assert any(not torch.equal(before[name], tensor) for name, tensor in weights(rank).items())


def test_gradients_of_a_batch_that_went_back_do_not_reach_the_next(make_rank, samples, images) -> None:
    rank, control = make_rank(), make_rank()
    rank.begin_batch(shard_of(samples[:3]), images)  # never acked, never dropped: the call was cancelled
    for learner in (rank, control):
        learner.begin_batch(shard_of(samples[3:]), images)
        learner.finish_batch()
    assert_same(weights(rank), weights(control))


def test_the_same_batches_give_the_same_weight_file(make_rank, samples, images, tmp_path: Path) -> None:
    digests = []
    for run in range(2):
        rank = make_rank()
        for _ in range(2):
            rank.begin_batch(shard_of(samples), images)
            rank.finish_batch()
        digests.append(rank.write_weights(2, tmp_path / str(run)).digest)
    assert digests[0] == digests[1]


def test_on_policy_logprobs_match_and_a_false_version_is_found_out(make_rank, samples, images) -> None:
    rank = make_rank()
    rank.begin_batch(shard_of(on_policy(rank, samples, images)), images)
    same = rank.finish_batch()
    assert same.max_abs_logprob_diff is not None
    assert same.max_abs_logprob_diff < 1e-5
    assert same.metrics["learner/kl_rollout/mean"] == pytest.approx(0.0, abs=1e-8)
    assert same.metrics["learner/ratio/mean"] == pytest.approx(1.0)
    # old weights whose tokens claim to be of the version held now: the step has changed the weights, its name has not
    stale = on_policy(make_rank(), samples, images)
    rank.begin_batch(shard_of(stale), images)
    diff = rank.finish_batch().max_abs_logprob_diff
    assert diff is not None
    assert diff > 0.01


def test_tokens_of_other_versions_have_no_part_in_parity(make_rank, samples, images) -> None:
    rank = make_rank()
    rank.begin_batch(shard_of(samples, train_from_version=1), images)
    assert rank.finish_batch().max_abs_logprob_diff is None


@pytest.mark.parametrize("minibatches", [1, 3])
def test_parity_is_measured_on_every_minibatch_before_any_update(make_rank, samples, images, minibatches) -> None:
    rank = make_rank(minibatches=minibatches, lr=1e-2)
    shifted = on_policy(rank, samples, images)
    shifted[-1] = on_policy(rank, samples, images, shift=-0.25)[-1]  # trained by the last minibatch
    rank.begin_batch(shard_of(shifted), images)
    result = rank.finish_batch()
    assert result.max_abs_logprob_diff == pytest.approx(0.25, abs=1e-4)
    assert rank.num_updates == minibatches
    moved = result.metrics["learner/ratio/max"] - 1.0
    assert moved == pytest.approx(0.0, abs=1e-6) if minibatches == 1 else moved > 1e-3


def test_the_size_of_microbatches_does_not_matter(make_rank, samples, images) -> None:
    results = []
    for microbatch_tokens in (8192, 70, 1):
        rank = make_rank(microbatch_tokens=microbatch_tokens, lr=1e-4)  # Adam's first step is lr x sign: noise shows
        rank.begin_batch(shard_of(samples), images)
        result = rank.finish_batch()
        results.append((result.metrics["learner/microbatches/count"], result.metrics, weights(rank)))
    assert results[0][0] == 1
    assert results[2][0] == len(samples)
    for _, metrics, found in results[1:]:
        for key in ("learner/loss/mean", "learner/grad_norm/l2", "learner/entropy/mean", "learner/reward/mean"):
            assert metrics[key] == pytest.approx(results[0][1][key], rel=1e-5)
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, results[0][2][name], rtol=0, atol=1e-5)


def test_a_good_action_becomes_likelier_and_a_bad_one_less_likely(make_rank, samples, images) -> None:
    rank = make_rank(lr=3e-4)
    pair = [
        replace(sample, advantages=np.float32(sign) * sample.loss_mask)
        for sample, sign in zip(on_policy(rank, samples[:2], images), (1.0, -1.0), strict=True)
    ]
    rank.begin_batch(shard_of(pair), images)
    rank.finish_batch()
    after = rank.compute_logprobs(pair, images)
    assert after[0].sum() > pair[0].logprobs.sum()
    assert after[1].sum() < pair[1].logprobs.sum()


def test_logprobs_are_those_of_the_stock_model(make_rank, samples, images, policy_folder: Path) -> None:
    """The same numbers by the model's own forward pass: full logits, temperature, bans, softmax."""
    rank = make_rank(temperature=0.7)
    policy = load_policy(policy_folder, device="cpu")
    processor = ImageProcessor(policy_folder)
    for sample, found in zip(samples, rank.compute_logprobs(samples, images), strict=True):
        ids = torch.tensor(sample.token_ids.tolist())[None]
        kwargs = {}
        if sample.image_spans:
            digests = [span.digest for span in sample.image_spans]
            prepared = processor.prepare_encoded(digests, images)
            kwargs = {
                "pixel_values": torch.cat([prepared[digest].pixel_values for digest in digests]),
                "image_grid_thw": torch.cat([prepared[digest].grid_thw for digest in digests]),
                "mm_token_type_ids": (ids == policy.image_token_id).long(),
            }
        with torch.no_grad():
            logits = policy.model(input_ids=ids, **kwargs).logits[0] / 0.7
        logits[:, [3, 4, 5, 6]] = float("-inf")
        expected = torch.log_softmax(logits, -1)[:-1].gather(-1, ids[0, 1:, None])[:, 0].numpy()
        on_mask = sample.loss_mask[1:]
        np.testing.assert_allclose(found[1:][on_mask], expected[on_mask], atol=2e-5)
        assert not found[~sample.loss_mask].any()


def test_the_kl_term_pulls_back_to_the_initial_weights(make_rank, samples, images) -> None:
    rank = make_rank(kl_coefficient=0.5)
    kl = []
    for _ in range(2):
        rank.begin_batch(shard_of(on_policy(rank, samples, images)), images)
        kl.append(rank.finish_batch().metrics["learner/kl_reference/mean"])
    assert kl[0] == pytest.approx(0.0, abs=1e-8)
    assert kl[1] > 1e-4


def test_an_empty_shard_runs_the_dummy_and_moves_nothing(make_rank, samples, images) -> None:
    rank = make_rank()
    before = weights(rank)
    empty = replace(shard_of(samples), samples=())
    rank.begin_batch(empty, {})
    result = rank.finish_batch()
    assert result.metrics["learner/microbatches/count"] == 1
    assert result.metrics["learner/grad_norm/l2"] == 0.0
    assert_same(weights(rank), before)


def test_warmup_and_clipping_are_as_configured(make_rank, samples, images) -> None:
    rank = make_rank(lr=1e-3, warmup_steps=4, max_grad_norm=1e-3)
    lrs = []
    for _ in range(5):
        rank.begin_batch(shard_of(samples), images)
        result = rank.finish_batch()
        lrs.append(result.metrics["learner/lr/rate"])
        assert result.metrics["learner/grad_norm/l2"] > 1e-3  # reported before clipping
    assert lrs == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3])


@pytest.mark.parametrize("damage", ["missing", "other"])
def test_damaged_images_are_refused_before_anything_is_computed(make_rank, samples, images, damage: str) -> None:
    rank = make_rank()
    digest = samples[0].image_spans[0].digest
    broken = {name: data for name, data in images.items() if name != digest}
    if damage == "other":
        broken[digest] = next(iter(broken.values()))
    before = weights(rank)
    with pytest.raises(RenderError, match=digest[:12]):
        rank.begin_batch(shard_of(samples), broken)
    assert_same(weights(rank), before)


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_ack(make_rank, samples, images) -> None:
    rank = make_rank()
    before = weights(rank)
    bad = replace(samples[0], advantages=np.where(samples[0].loss_mask, np.float32("nan"), np.float32(0)))
    with pytest.raises(RunFailedError, match="lease-0"):
        rank.begin_batch(shard_of([bad, *samples[1:]]), images)
    assert_same(weights(rank), before)


def test_the_newest_two_weight_files_are_kept(make_rank, tmp_path: Path) -> None:
    rank = make_rank()
    for version in (0, 1, 2, 3):
        update = rank.write_weights(version, tmp_path)
        assert Path(update.path).exists()
    assert list(weight_file_versions(tmp_path)) == [2, 3]
    rank.write_weights(1, tmp_path)  # a resume went back behind 2 and 3: they are of a lost history
    assert list(weight_file_versions(tmp_path)) == [1]
    assert len(list(tmp_path.iterdir())) == 1


def test_bfloat16_computes_in_bfloat16_over_float32_weights(make_rank, samples, images, tmp_path: Path) -> None:
    rank = make_rank(dtype="bfloat16", lr=1e-6)
    for _ in range(2):
        rank.begin_batch(shard_of(samples), images)
        result = rank.finish_batch()
    assert np.isfinite(result.metrics["learner/grad_norm/l2"])
    assert {parameter.dtype for parameter in rank.policy.model.parameters()} == {torch.float32}
    assert {tensor.dtype for tensor in weights(rank).values()} == {torch.bfloat16}
    reference = make_rank()
    exact = reference.compute_logprobs(samples, images)
    rounded = rank.compute_logprobs(samples, images)
    largest = max(float(np.abs(a - b).max()) for a, b in zip(exact, rounded, strict=True))
    assert 1e-6 < largest < 0.2
