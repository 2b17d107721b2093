"""The parity probe: always the same size, two turns, an image at two places."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from rollout_parts import make_factory, make_tasks

from medvista_ray.rendering.spans import check_stream
from medvista_ray.rollout.probe import (
    NUM_SEQUENCES,
    NUM_TURNS,
    TOKENS_PER_TURN,
    max_logprob_difference,
    sample_probe,
)
from medvista_ray.testing.blobs import MemoryBlobStore
from medvista_ray.testing.inference import ScriptedPolicyClient


async def probe(renderer, client, blobs=None, *, seed=5):
    tasks = make_tasks("zoom", "window", "structure")
    factory = make_factory()
    try:
        return await sample_probe(
            [tasks[index] for index in range(NUM_SEQUENCES)],
            make_env=factory.make,
            renderer=renderer,
            client=client,
            blobs=MemoryBlobStore() if blobs is None else blobs,
            temperature=0.7,
            seed=seed,
        )
    finally:
        factory.close()


async def test_every_probe_has_the_same_size(renderer):
    """Even when the policy would stop at once."""
    blobs = MemoryBlobStore()
    client = ScriptedPolicyClient(lambda request: [renderer.end_token_id] * 99, policy_version=4)
    samples = await probe(renderer, client, blobs)
    assert len(samples) == NUM_SEQUENCES >= 4
    for index, sample in enumerate(samples):
        assert int(sample.loss_mask.sum()) == NUM_TURNS * (TOKENS_PER_TURN // NUM_TURNS) == 32
        assert not sample.advantages.any()
        first, second = sample.image_spans
        assert first.digest == second.digest
        assert first.offset < second.offset
        assert first.digest in blobs.data
        check_stream(sample.token_ids, sample.image_spans, image_token_id=renderer.image_token_id)
        assert {span.policy_version for span in sample.version_spans} == {4}
        assert sample.group_id == f"probe-{index}"
    for request in client.requests:
        assert request.sampling.stop_token_ids == ()
        assert request.sampling.banned_token_ids == renderer.banned_token_ids
        assert (request.sampling.temperature, request.seed) == (0.7, 5)


async def test_the_largest_difference_is_over_sampled_tokens_only(renderer):
    samples = await probe(renderer, ScriptedPolicyClient(lambda request: [40] * 99))
    learner = [sample.logprobs.copy() for sample in samples]
    for logprobs, sample in zip(learner, samples, strict=True):
        logprobs[~sample.loss_mask] = 100.0
    assert max_logprob_difference(samples, learner) == 0.0
    learner[2][np.flatnonzero(samples[2].loss_mask)[3]] += np.float32(0.125)
    assert max_logprob_difference(samples, learner) == pytest.approx(0.125)
    with pytest.raises(ValueError, match="shorter"):
        max_logprob_difference([*samples, dataclasses.replace(samples[0])], learner)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["engine", "learner"])
async def test_a_number_that_is_not_finite_is_an_infinite_difference_wherever_it_stands(renderer, value, side):
    samples = await probe(renderer, ScriptedPolicyClient(lambda request: [40] * 99))
    learner = [sample.logprobs.copy() for sample in samples]
    for index in range(NUM_SEQUENCES):
        place = np.flatnonzero(samples[index].loss_mask)[3]
        changed, scored = list(samples), [logprobs.copy() for logprobs in learner]
        if side == "learner":
            scored[index][place] = value
        else:
            logprobs = samples[index].logprobs.copy()
            logprobs[place] = value
            changed[index] = dataclasses.replace(samples[index], logprobs=logprobs)
        assert max_logprob_difference(changed, scored) == np.inf
