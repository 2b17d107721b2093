"""Token streams -> tensors of one forward pass -> logprobs of their action tokens. Knows no loss, rank or optimizer.

Axes: T action tokens of a microbatch (whole sequences one after another), V vocabulary, B rows, W padded width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from medvista_ray.errors import RenderError
from medvista_ray.images.codec import digest_of
from medvista_ray.policy.distribution import gather, processed_logprobs
from medvista_ray.policy.image_processor import ImageProcessor, PreparedImages
from medvista_ray.policy.inputs import PolicyInputs, PolicyRow, check_row, make_inputs
from medvista_ray.policy.loading import Policy
from medvista_ray.types.sampling import SamplingSpec
from medvista_ray.types.trajectories import ImageSpan

_DUMMY_ROW = PolicyRow(token_ids=np.zeros(2, np.int32))


class TokenStream(Protocol):
    """What training needs of a `TrainingSample` or a `Trajectory`."""

    @property
    def token_ids(self) -> np.ndarray:
        """Expanded ids, int32 [L]."""

    @property
    def loss_mask(self) -> np.ndarray:
        """True on action tokens, bool [L]."""

    @property
    def image_spans(self) -> tuple[ImageSpan, ...]:
        """Images in order of offset."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MicroBatch:
    """Padded inputs of one forward pass, and where its action tokens are predicted."""

    inputs: PolicyInputs
    predicted_at_T: Tensor  # int64, index into the flattened [B * W]: one before each action token
    action_ids_T: Tensor  # int64
    sequence_T: Tensor  # int64, 0..B-1
    is_dummy: bool  # no real row: it runs so that every rank runs as many passes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """What the policy says of the action tokens of a microbatch."""

    logprobs_T: Tensor  # float32, nats, with a gradient where gradients are on
    entropy_T: Tensor  # float32, nats, detached
    anchor: Tensor  # scalar 0.0 that depends on every parameter; carries the backward pass of a dummy


def prepare_images(
    streams: Sequence[TokenStream], encoded: Mapping[str, bytes], processor: ImageProcessor
) -> dict[str, PreparedImages]:
    """Process the images of some streams; `RenderError` where bytes are not what their digest says."""
    digests = list(dict.fromkeys(span.digest for stream in streams for span in stream.image_spans))
    for digest in processor.missing(digests):
        if digest not in encoded or digest_of(encoded[digest]) != digest:
            raise RenderError(f"the bytes of image {digest[:12]} are missing or damaged")
    return processor.prepare_encoded(digests, encoded)


def make_microbatch(
    streams: Sequence[TokenStream], images: Mapping[str, PreparedImages], policy: Policy, *, device: torch.device
) -> MicroBatch:
    """Pad whole streams on the right; no stream gives the dummy. `RenderError` says which rule a stream breaks."""
    rows = [PolicyRow(token_ids=stream.token_ids, image_spans=stream.image_spans) for stream in streams]
    for row, stream in zip(rows, streams, strict=True):
        check_row(
            row,
            images,
            image_token_id=policy.image_token_id,
            vocab_size=policy.vocab_size,
            max_length=policy.max_length,
        )
        if stream.loss_mask[0]:
            raise RenderError("the first token of a stream cannot be an action: nothing predicts it")
    inputs = make_inputs(rows or [_DUMMY_ROW], images, pad_left=False, device=device)
    columns = [np.flatnonzero(stream.loss_mask) for stream in streams]
    predicted_at = [row * inputs.width + columns[row] - 1 for row in range(len(streams))]
    action_ids = [stream.token_ids[stream.loss_mask] for stream in streams]
    sequence = np.repeat(np.arange(len(streams)), [len(of_row) for of_row in columns])

    def to_device(parts: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)).to(device)

    return MicroBatch(
        inputs=inputs,
        predicted_at_T=to_device(predicted_at),
        action_ids_T=to_device(action_ids),
        sequence_T=to_device([sequence]),
        is_dummy=not streams,
    )


def score_actions(network: nn.Module, microbatch: MicroBatch, sampling: SamplingSpec) -> Scores:
    """Run the forward pass and score the action tokens under the distribution that they were sampled from.

    Every pass runs the vision tower, with a blank image of weight 0 where no row has one: ranks of a sharded model must
    take part in the same collectives.
    """
    at_T = microbatch.predicted_at_T
    projected_at = at_T if at_T.numel() else at_T.new_zeros(1)
    logits_TV = network(microbatch.inputs, positions_to_project=projected_at, dummy_vision=True)
    anchor = 0.0 * logits_TV.float().sum()
    logprobs_TV = processed_logprobs(logits_TV[: at_T.numel()], sampling)
    with torch.no_grad():
        entropy_T = -(logprobs_TV.exp() * logprobs_TV.clamp(min=torch.finfo(torch.float32).min)).sum(-1)
    return Scores(logprobs_T=gather(logprobs_TV, microbatch.action_ids_T), entropy_T=entropy_T, anchor=anchor)
