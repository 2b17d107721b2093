"""Rows of expanded tokens -> padded tensors, with the rules that a row must obey. Knows no model.

Axes: B rows, W padded width, F image-feature tokens in the batch (row by row), P patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medvista_ray.errors import RenderError
from medvista_ray.policy.image_processor import PreparedImages, concatenate
from medvista_ray.policy.positions import compute_positions
from medvista_ray.types.trajectories import ImageSpan


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolicyRow:
    """One token stream, expanded, and where its images stand."""

    token_ids: np.ndarray  # int [L]
    image_spans: tuple[ImageSpan, ...] = ()  # in order of offset


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolicyInputs:
    """A padded batch. Every image stands in `images` once, however many rows show it."""

    token_ids: torch.Tensor  # int64 [B, W]
    positions: torch.Tensor  # int64 [3, B, W]
    attention_mask: torch.Tensor | None  # bool [B, 1, W, W]; None: plain causal attention is right
    offsets: np.ndarray  # int64 [B] column of each row's first token
    lengths: np.ndarray  # int64 [B]
    next_positions: torch.Tensor  # int64 [B] M-RoPE position of the token after the row
    digests: tuple[str, ...]  # distinct images, in order of first use
    images: PreparedImages | None  # of `digests`, in that order; None without images
    feature_slots: torch.Tensor  # int64 [F] index into the flattened [B * W]
    feature_index: torch.Tensor  # int64 [F] index into the features of `digests`, one after the other

    @property
    def width(self) -> int:
        """Return W."""
        return int(self.token_ids.shape[1])


def check_row(
    row: PolicyRow, images: Mapping[str, PreparedImages], *, image_token_id: int, vocab_size: int, max_length: int
) -> int:
    """Return the length of the expanded row as the model sees it; `RenderError` says which rule it breaks."""
    token_ids = row.token_ids
    if len(token_ids) == 0 or len(token_ids) > max_length:
        raise RenderError(f"a row has 1 to {max_length} tokens, got {len(token_ids)}")
    if int(token_ids.min()) < 0 or int(token_ids.max()) >= vocab_size:
        raise RenderError(f"token ids are in [0, {vocab_size}), got {int(token_ids.min())} to {int(token_ids.max())}")
    expected = np.zeros(len(token_ids), bool)
    end = 0
    for span in row.image_spans:
        features = images[span.digest].num_features[0]
        if span.length != features:
            raise RenderError(f"image {span.digest[:12]} has {features} features, its span has {span.length} tokens")
        if span.offset < end or span.offset + span.length > len(token_ids):
            raise RenderError(f"span {span.offset}+{span.length} overlaps another or leaves the row")
        end = span.offset + span.length
        expected[span.offset : end] = True
    if not np.array_equal(token_ids == image_token_id, expected):
        raise RenderError(
            f"{int((token_ids == image_token_id).sum())} image tokens do not stand where the spans say "
            f"({int(expected.sum())} features)"
        )
    return len(token_ids)


def make_inputs(
    rows: Sequence[PolicyRow],
    images: Mapping[str, PreparedImages],
    *,
    pad_left: bool,
    device: torch.device | str = "cpu",
    pad_token_id: int = 0,
) -> PolicyInputs:
    """Pad rows to one width and lay out positions, mask and image features.

    Args:
        rows: the batch; `check_row` holds for each.
        images: one record for each digest that a span names.
        pad_left: True for sampling (the last column is the last token of every row), False for training.
        device: where the tensors go.
        pad_token_id: what padding columns hold; they never reach a real token.
    """
    lengths = np.array([len(row.token_ids) for row in rows], np.int64)
    width = int(lengths.max())
    offsets = width - lengths if pad_left else np.zeros_like(lengths)
    token_ids = np.full((len(rows), width), pad_token_id, np.int64)
    positions = np.zeros((3, len(rows), width), np.int64)
    next_positions = np.empty(len(rows), np.int64)
    digests: dict[str, int] = {}  # -> index of the first feature
    num_features = 0
    slots: list[np.ndarray] = [np.empty(0, np.int64)]
    index: list[np.ndarray] = [np.empty(0, np.int64)]
    for b, row in enumerate(rows):
        start, end = int(offsets[b]), int(offsets[b] + lengths[b])
        grids = [images[span.digest].grids[0] for span in row.image_spans]
        merge_size = images[row.image_spans[0].digest].merge_size if grids else 1
        token_ids[b, start:end] = row.token_ids
        positions[:, b, start:end], next_positions[b] = compute_positions(
            end - start, row.image_spans, grids, merge_size
        )
        for span in row.image_spans:
            if span.digest not in digests:
                digests[span.digest] = num_features
                num_features += span.length
            slots.append(b * width + start + span.offset + np.arange(span.length))
            index.append(digests[span.digest] + np.arange(span.length))

    def to_device(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(device)

    return PolicyInputs(
        token_ids=to_device(token_ids),
        positions=to_device(positions),
        attention_mask=_left_padding_mask(to_device(offsets), width) if offsets.any() else None,
        offsets=offsets,
        lengths=lengths,
        next_positions=to_device(next_positions),
        digests=tuple(digests),
        images=concatenate([images[digest] for digest in digests]) if digests else None,
        feature_slots=to_device(np.concatenate(slots)),
        feature_index=to_device(np.concatenate(index)),
    )


def _left_padding_mask(offsets: torch.Tensor, width: int) -> torch.Tensor:
    """Return bool [B, 1, W, W]: causal, not padding; a padding column sees itself, for none may see nothing."""
    columns = torch.arange(width, device=offsets.device)
    causal = columns[None, :] <= columns[:, None]
    is_token = columns[None, :] >= offsets[:, None]
    itself = columns[None, :] == columns[:, None]
    return ((causal[None] & is_token[:, None, :]) | itself[None])[:, None]
