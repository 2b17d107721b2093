"""The synchronous engine: parity with the learner's forward, determinism, bans, stops, weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medvista_ray.errors import EngineClosedError, ImageError, RenderError, WeightsRefusedError
from medvista_ray.inference.sampler import draw_uniforms, sample
from medvista_ray.inference.transformers_engine import TransformersEngine
from medvista_ray.policy.distribution import gather, processed_logprobs
from medvista_ray.policy.image_processor import ImageProcessor, PreparedImages
from medvista_ray.policy.inputs import PolicyRow, make_inputs
from medvista_ray.policy.loading import Policy, load_policy
from medvista_ray.policy.weights import file_digest, named_weights, weights_checksum, write_weights
from medvista_ray.types.sampling import GenerateRequest, GenerateResult, SamplingSpec, WeightUpdate
from medvista_ray.types.trajectories import ImageSpan, VersionSpan

SPECIALS = (3, 4, 5, 6)
STOP = 2
SAMPLING = SamplingSpec(temperature=0.8, banned_token_ids=SPECIALS, stop_token_ids=(STOP,))
RowsOf = Callable[[Policy], list[PolicyRow]]


def write_update(policy: Policy, folder: Path, version: int) -> WeightUpdate:
    path = folder / f"v{version}.safetensors"
    digest = write_weights(named_weights(policy.model), path)
    return WeightUpdate(policy_version=version, path=str(path), digest=digest)


def make_engine(policy: Policy, folder: Path, *, version: int = 0) -> TransformersEngine:
    engine = TransformersEngine(policy)
    engine.stage(write_update(policy, folder, version))
    engine.swap(version)
    return engine


def make_requests(
    rows: list[PolicyRow], *, sampling: SamplingSpec = SAMPLING, max_new_tokens: int = 12, turn_index: int = 0
) -> list[GenerateRequest]:
    return [
        GenerateRequest(
            group_id=f"0/{i // 2}/0",
            member=i % 2,
            turn_index=turn_index,
            token_ids=row.token_ids,
            image_spans=row.image_spans,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=11,
        )
        for i, row in enumerate(rows)
    ]


def learner_logprobs(
    policy: Policy, images: dict[str, bytes], requests: list[GenerateRequest], results: list[GenerateResult]
) -> list[np.ndarray]:
    """Return the logprobs of the actions from one right-padded pass over the whole streams, as a learner does."""
    rows = [
        PolicyRow(token_ids=np.concatenate([request.token_ids, result.token_ids]), image_spans=request.image_spans)
        for request, result in zip(requests, results, strict=True)
    ]
    inputs = make_inputs(rows, ImageProcessor(policy.folder).prepare_encoded(images, images), pad_left=False)
    positions = torch.cat(
        [
            torch.arange(len(q.token_ids) - 1, len(row.token_ids) - 1) + i * inputs.width
            for i, (q, row) in enumerate(zip(requests, rows, strict=True))
        ]
    )
    with torch.no_grad():
        logits = policy.network(inputs, positions_to_project=positions)
    actions = torch.from_numpy(np.concatenate([result.token_ids for result in results]))
    found = gather(processed_logprobs(logits, requests[0].sampling), actions).numpy()
    return np.split(found, np.cumsum([len(result.token_ids) for result in results])[:-1])


def assert_parity(
    policy: Policy, images: dict[str, bytes], requests: list[GenerateRequest], results: list[GenerateResult]
) -> None:
    for expected, result in zip(learner_logprobs(policy, images, requests, results), results, strict=True):
        assert np.abs(expected - result.logprobs).max() < 1e-5


def next_turn(
    policy: Policy, request: GenerateRequest, result: GenerateResult, digest: str, prepared: dict[str, PreparedImages]
) -> GenerateRequest:
    """Append the action and an observation with one image."""
    features = prepared[digest].num_features[0]
    head = np.concatenate([request.token_ids, result.token_ids, [20, 21]])
    return replace(
        request,
        turn_index=request.turn_index + 1,
        token_ids=np.concatenate([head, [policy.image_token_id] * features, [22]]).astype(np.int32),
        image_spans=(*request.image_spans, ImageSpan(digest=digest, offset=len(head), length=features)),
    )


def test_logprobs_are_the_learner_s_over_two_turns_with_images(
    policy: Policy, rows: RowsOf, images: dict[str, bytes], tmp_path: Path
) -> None:
    engine = make_engine(policy, tmp_path)
    first = make_requests(rows(policy))
    answers = engine.generate_batch(first, images)
    assert_parity(policy, images, first, answers)
    prepared = ImageProcessor(policy.folder).prepare_encoded(images, images)
    digests = list(images)
    second = [
        next_turn(policy, request, answer, digests[i % 4], prepared)
        for i, (request, answer) in enumerate(zip(first, answers, strict=True))
    ]
    again = engine.generate_batch(second, images)
    assert_parity(policy, images, second, again)
    for request, answer in zip(second, again, strict=True):
        assert answer.prompt_length == len(request.token_ids)
        assert answer.version_spans == (VersionSpan(policy_version=0, start=0, end=len(answer.token_ids)),)
        assert answer.token_ids.dtype == np.int32
        assert answer.logprobs.dtype == np.float32


def test_the_same_requests_give_identical_bytes(
    policy: Policy, rows: RowsOf, images: dict[str, bytes], tmp_path: Path
) -> None:
    engine = make_engine(policy, tmp_path)
    requests = make_requests(rows(policy))
    once, twice = engine.generate_batch(requests, images), engine.generate_batch(requests, images)
    for left, right in zip(once, twice, strict=True):
        assert left.token_ids.tobytes() == right.token_ids.tobytes()
        assert left.logprobs.tobytes() == right.logprobs.tobytes()


def test_another_batch_composition_gives_the_same_ids(
    policy: Policy, rows: RowsOf, images: dict[str, bytes], tmp_path: Path
) -> None:
    engine = make_engine(policy, tmp_path)
    batch = rows(policy)
    requests = make_requests([row for row in batch for _ in range(3)], max_new_tokens=20)  # equal prompts, other draws
    together = engine.generate_batch(requests, images)
    reversed_answers = engine.generate_batch(requests[::-1], images)[::-1]
    for request, left, right in zip(requests, together, reversed_answers, strict=True):
        alone = engine.generate_batch([request], images)[0]
        for other in (right, alone):
            assert left.token_ids.tolist() == other.token_ids.tolist()
            assert np.abs(left.logprobs - other.logprobs).max() < 1e-5
    assert len({tuple(answer.token_ids) for answer in together[:3]}) == 3


def test_requests_of_different_length_and_distribution_share_a_batch(
    qwen3: Policy, rows: RowsOf, images: dict[str, bytes], tmp_path: Path
) -> None:
    engine = make_engine(qwen3, tmp_path)
    requests = make_requests(rows(qwen3))
    greedy = replace(SAMPLING, temperature=0.0)
    mixed = [
        replace(request, max_new_tokens=1 + 3 * i, sampling=greedy if i % 2 else SAMPLING)
        for i, request in enumerate(requests)
    ]
    for request, answer in zip(mixed, engine.generate_batch(mixed, images), strict=True):
        alone = engine.generate_batch([request], images)[0]
        assert answer.token_ids.tolist() == alone.token_ids.tolist()
        assert 1 <= len(answer.token_ids) <= request.max_new_tokens
        if request.sampling is greedy:
            logits = learner_logprobs(qwen3, images, [request], [answer])
            assert np.abs(logits[0] - answer.logprobs).max() < 1e-5


def test_an_action_ends_with_the_first_stop_id_or_at_its_limit(
    qwen3: Policy, rows: RowsOf, images: dict[str, bytes], tmp_path: Path
) -> None:
    engine = make_engine(qwen3, tmp_path)
    some_ids = tuple(range(100, 140))
    requests = make_requests(
        rows(qwen3) * 4, sampling=SamplingSpec(stop_token_ids=some_ids, banned_token_ids=SPECIALS), max_new_tokens=10
    )
    requests = [replace(request, seed=i) for i, request in enumerate(requests)]
    answers = engine.generate_batch(requests, images)
    assert {answer.stopped for answer in answers} == {True, False}
    for answer in answers:
        hits = np.isin(answer.token_ids, some_ids)
        assert answer.stopped == bool(hits[-1])
        assert not hits[:-1].any()
        assert answer.stopped or len(answer.token_ids) == 10
    assert_parity(qwen3, images, requests, answers)  # rows left the batch at different times


def test_banned_ids_are_never_sampled_even_when_the_logits_want_them() -> None:
    vocab_size = 40
    logits = torch.zeros(20_000, vocab_size)
    logits[:, list(SPECIALS)] = 30.0
    logits[:, -1] = -60.0
    uniforms = torch.from_numpy(np.random.default_rng(0).random(20_000))
    uniforms[:2] = torch.tensor([2.0**-33, 1 - 2.0**-33], dtype=torch.float64)
    token_ids, logprobs = sample(logits, uniforms, SamplingSpec(banned_token_ids=(*SPECIALS, 0)))
    counts = np.bincount(token_ids.numpy(), minlength=vocab_size)
    assert not counts[[0, *SPECIALS]].any()
    assert torch.isfinite(logprobs).all()
    allowed = counts[[i for i in range(vocab_size - 1) if i not in (0, *SPECIALS)]]
    assert allowed.min() > 400  # 20,000 / 34 = 588 each


def test_draws_depend_on_their_key_only() -> None:
    request = GenerateRequest(
        group_id="0/1/0",
        member=2,
        turn_index=3,
        token_ids=np.array([9], np.int32),
        image_spans=(),
        max_new_tokens=64,
        sampling=SAMPLING,
        seed=5,
    )
    draws = draw_uniforms(request)
    assert np.array_equal(draws[:7], draw_uniforms(replace(request, max_new_tokens=7, token_ids=np.arange(9))))
    assert draws[:2].tolist() == [0.4895224851788953, 0.2006105511682108]  # the same on every machine
    others = [
        replace(request, group_id="0/1/1"),
        replace(request, member=1),
        replace(request, turn_index=2),
        replace(request, seed=6),
    ]
    assert all(not np.isin(draw_uniforms(other), draws).any() for other in others)
    assert (draws > 0).all()
    assert (draws < 1).all()


def test_a_closed_engine_refuses(qwen3: Policy, rows: RowsOf, images: dict[str, bytes]) -> None:
    engine = TransformersEngine(qwen3)
    assert engine.policy_version is None
    with pytest.raises(EngineClosedError):
        engine.generate_batch(make_requests(rows(qwen3)), images)


def test_a_bad_request_harms_no_other(qwen3: Policy, rows: RowsOf, images: dict[str, bytes], tmp_path: Path) -> None:
    engine = make_engine(qwen3, tmp_path)
    requests = make_requests(rows(qwen3))
    expected = engine.generate_batch(requests, images)
    short = replace(requests[0], token_ids=np.delete(requests[0].token_ids, requests[0].image_spans[0].offset))
    unreadable = replace(requests[1], image_spans=(replace(requests[1].image_spans[0], digest="bad"),))
    outcomes = engine.try_generate_batch([short, unreadable, *requests], images | {"bad": b"\x89PNG no"})
    assert isinstance(outcomes[0], RenderError)
    assert isinstance(outcomes[1], ImageError)
    for left, right in zip(outcomes[2:], expected, strict=True):
        assert isinstance(left, GenerateResult)
        assert left.token_ids.tolist() == right.token_ids.tolist()
    with pytest.raises(RenderError, match="do not stand"):
        engine.generate_batch([short], images)
    with pytest.raises(RenderError, match="max_new_tokens"):
        engine.generate_batch([replace(requests[0], max_new_tokens=0)], images)
    too_long = replace(requests[2], token_ids=np.full(4077, 9, np.int32), max_new_tokens=20)
    with pytest.raises(RenderError, match="1 to 4076 tokens"):
        engine.generate_batch([too_long], images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("lm_head.weight"), "1 tensors are missing, the first is 'lm_head.weight'"),
        (lambda w: w.update(other=torch.zeros(1)), "unknown to the model, the first is 'other'"),
        (lambda w: w.update({"lm_head.weight": torch.zeros(2, 2)}), "'lm_head.weight' has shape"),
        (lambda w: w.update({"lm_head.weight": w["lm_head.weight"].half()}), "'lm_head.weight' has dtype"),
        (lambda w: w["lm_head.weight"].fill_(float("nan")), "'lm_head.weight' holds values that are not finite"),
    ],
)
def test_stage_refuses_what_does_not_fit_and_changes_nothing(
    qwen3: Policy, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    engine = make_engine(qwen3, tmp_path)
    before = weights_checksum(named_weights(qwen3.model))
    weights = {name: tensor.detach().clone() for name, tensor in named_weights(qwen3.model).items()}
    change(weights)
    path = tmp_path / "bad.safetensors"
    update = WeightUpdate(policy_version=1, path=str(path), digest=write_weights(weights, path))
    with pytest.raises(WeightsRefusedError, match=message):
        engine.stage(update)
    with pytest.raises(WeightsRefusedError, match="version 1 is not staged, nothing is"):
        engine.swap(1)
    assert engine.policy_version == 0
    assert weights_checksum(named_weights(qwen3.model)) == before


def test_stage_refuses_a_wrong_digest_and_a_damaged_file(qwen3: Policy, tmp_path: Path) -> None:
    engine = make_engine(qwen3, tmp_path)
    update = write_update(qwen3, tmp_path, 1)
    with pytest.raises(WeightsRefusedError, match="announced was 0000"):
        engine.stage(replace(update, digest="0" * 64))
    Path(update.path).write_bytes(b"torn")
    with pytest.raises(WeightsRefusedError, match="not a safetensors file"):
        engine.stage(replace(update, digest=file_digest(Path(update.path))))


def test_five_swaps_with_the_same_images_keep_parity(
    policy: Policy, rows: RowsOf, images: dict[str, bytes], tmp_path: Path
) -> None:
    learner = load_policy(policy.folder, device="cpu")
    engine = make_engine(policy, tmp_path)
    requests = make_requests(rows(policy), max_new_tokens=6)
    seen = [engine.generate_batch(requests, images)]
    for version in range(1, 6):
        generator = torch.Generator().manual_seed(version)
        with torch.no_grad():
            for weight in learner.model.parameters():  # vision, language, head: all of them move
                weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
        engine.stage(write_update(learner, tmp_path, version))
        assert engine.policy_version == version - 1
        checksum = engine.swap(version)
        assert checksum == weights_checksum(named_weights(learner.model)) == engine.swap(version)
        answers = engine.generate_batch(requests, images)
        assert_parity(learner, images, requests, answers)
        assert {answer.version_spans[0].policy_version for answer in answers} == {version}
        seen.append(answers)
    first, last = seen[0][0], seen[-1][0]
    assert first.token_ids.tolist() != last.token_ids.tolist() or np.abs(first.logprobs - last.logprobs).max() > 1e-3
