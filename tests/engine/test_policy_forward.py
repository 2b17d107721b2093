"""Positions and the batched forward pass against the plain Hugging Face model, one row at a time."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from medvista_ray.errors import RenderError
from medvista_ray.policy.forward import join_features
from medvista_ray.policy.image_processor import PreparedImages, concatenate
from medvista_ray.policy.inputs import PolicyRow, check_row, make_inputs
from medvista_ray.policy.loading import Policy
from medvista_ray.policy.positions import compute_positions

RowsOf = Callable[[Policy], list[PolicyRow]]
PrepareFor = Callable[[Policy], dict[str, PreparedImages]]


def plain_arguments(policy: Policy, row: PolicyRow, prepared: dict[str, PreparedImages]) -> dict[str, torch.Tensor]:
    token_ids = torch.from_numpy(row.token_ids.astype(np.int64))[None]
    arguments = {"input_ids": token_ids}
    if row.image_spans:
        joined = concatenate([prepared[span.digest] for span in row.image_spans])
        arguments |= {
            "pixel_values": joined.pixel_values,
            "image_grid_thw": joined.grid_thw,
            "mm_token_type_ids": (token_ids == policy.image_token_id).int(),
        }
    return arguments


@functools.cache
def stock_model(folder: Path) -> Any:
    """Return the model as Hugging Face loads it, untouched by our code."""
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()


@torch.no_grad()
def plain_logprobs(policy: Policy, row: PolicyRow, prepared: dict[str, PreparedImages]) -> torch.Tensor:
    logits = stock_model(policy.folder)(**plain_arguments(policy, row, prepared)).logits[0]
    return torch.log_softmax(logits.float(), -1)


def test_positions_equal_the_model_s_own(policy: Policy, rows: RowsOf, prepare: PrepareFor) -> None:
    prepared = prepare(policy)
    for row in rows(policy):
        grids = [prepared[span.digest].grids[0] for span in row.image_spans]
        positions, following = compute_positions(len(row.token_ids), row.image_spans, grids, 2)
        arguments = plain_arguments(policy, row, prepared)
        token_ids = arguments["input_ids"]
        expected, delta = policy.model.model.get_rope_index(
            token_ids,
            mm_token_type_ids=(token_ids == policy.image_token_id).int(),
            image_grid_thw=arguments.get("image_grid_thw"),
        )
        assert np.array_equal(positions, expected[:, 0].numpy())
        assert following == len(row.token_ids) + int(delta)


@pytest.mark.parametrize("pad_left", [True, False])
@torch.no_grad()
def test_a_padded_batch_gives_every_row_its_plain_logprobs(
    policy: Policy, rows: RowsOf, prepare: PrepareFor, pad_left: bool
) -> None:
    prepared, batch = prepare(policy), rows(policy)
    inputs = make_inputs(batch, prepared, pad_left=pad_left)
    logits = policy.network.project(policy.network(inputs))
    for i, row in enumerate(batch):
        start, length = inputs.offsets[i], inputs.lengths[i]
        found = torch.log_softmax(logits[i, start : start + length].float(), -1)
        assert (found - plain_logprobs(policy, row, prepared)).abs().max() < 1e-5


@torch.no_grad()
def test_the_vision_tower_sees_an_image_once_and_features_can_be_handed_in(
    policy: Policy, rows: RowsOf, prepare: PrepareFor
) -> None:
    prepared = prepare(policy)
    inputs = make_inputs(rows(policy), prepared, pad_left=True)
    assert inputs.images is not None
    assert len(inputs.digests) == len(set(inputs.digests)) == 4
    assert sum(inputs.images.num_features) < len(inputs.feature_slots)
    each = [policy.network.encode(prepared[digest]) for digest in inputs.digests]
    last = torch.tensor([inputs.width - 1])
    handed = policy.network(inputs, features=join_features(each), positions_to_project=last)
    assert (handed - policy.network(inputs, positions_to_project=last)).abs().max() < 1e-5


def test_linear_patches_are_the_stock_convolution(policy: Policy, prepare: PrepareFor) -> None:
    embedding = policy.model.model.visual.patch_embed
    copied = copy.deepcopy(embedding)
    pixels = concatenate(list(prepare(policy).values())).pixel_values
    ours, stock = copied(pixels), type(embedding).__mro__[2].forward(embedding, pixels)
    assert torch.allclose(ours, stock, atol=1e-5)
    ours.square().sum().backward()
    stock.square().sum().backward()
    expected = embedding.proj.weight.grad
    assert (copied.proj.weight.grad - expected).abs().max() < 1e-5 * expected.abs().max()


def test_gradients_reach_vision_and_language(policy: Policy, rows: RowsOf, prepare: PrepareFor) -> None:
    inputs = make_inputs(rows(policy), prepare(policy), pad_left=False)
    policy.network(inputs, positions_to_project=torch.arange(8)).logsumexp(-1).sum().backward()
    without = [name for name, weight in policy.model.named_parameters() if weight.grad is None]
    assert without == []
    assert float(policy.model.model.visual.patch_embed.proj.weight.grad.abs().max()) > 0


def test_dummy_vision_changes_nothing_and_touches_every_vision_weight(
    policy: Policy, rows: RowsOf, prepare: PrepareFor
) -> None:
    text_only = [row for row in rows(policy) if not row.image_spans]
    inputs = make_inputs(text_only, {}, pad_left=False)
    positions = torch.arange(5)
    plain = policy.network(inputs, positions_to_project=positions)
    dummy = policy.network(inputs, positions_to_project=positions, dummy_vision=True)
    assert torch.equal(plain, dummy)
    dummy.sum().backward()
    gradients = [weight.grad for weight in policy.model.model.visual.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: replace(row, image_spans=row.image_spans[:1]), "image tokens do not stand"),
        (lambda row: replace(row, token_ids=np.delete(row.token_ids, row.image_spans[1].offset)), "do not stand"),
        (
            lambda row: replace(row, image_spans=(replace(row.image_spans[0], length=row.image_spans[0].length - 1),)),
            "features, its span has",
        ),
        (lambda row: replace(row, image_spans=row.image_spans[::-1]), "overlaps"),
        (lambda row: replace(row, token_ids=np.append(row.token_ids, 10**6)), "token ids are in"),
        (lambda row: replace(row, token_ids=row.token_ids[:0]), "1 to 4000 tokens"),
        (lambda row: replace(row, token_ids=np.append(row.token_ids, np.full(4000, 9))), "1 to 4000 tokens"),
    ],
)
def test_a_row_that_breaks_a_rule_is_refused(
    qwen3: Policy, rows: RowsOf, prepare: PrepareFor, change: Callable[[PolicyRow], PolicyRow], message: str
) -> None:
    def check(row: PolicyRow) -> int:
        return check_row(
            row,
            prepare(qwen3),
            image_token_id=qwen3.image_token_id,
            vocab_size=qwen3.vocab_size,
            max_length=4000,
        )

    row = rows(qwen3)[1]
    assert check(row) == len(row.token_ids)
    with pytest.raises(RenderError, match=message):
        check(change(row))
