"""The two forms of a token stream: expanded (one id per image feature) and collapsed (one id per image). Pure.

Records hold the expanded form. An engine that expands by itself (vLLM) must be given the collapsed one, since it
silently expands expanded ids once more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medvista_ray.errors import RenderError
from medvista_ray.types.trajectories import ImageSpan


def collapse(token_ids: np.ndarray, image_spans: Sequence[ImageSpan]) -> np.ndarray:
    """Keep one placeholder per image; int32 [L] -> int32 [L - sum(length - 1)]."""
    keep = np.ones(len(token_ids), dtype=bool)
    for span in image_spans:
        if span.length < 1 or span.offset < 0 or span.offset + span.length > len(token_ids):
            raise RenderError(f"image span {span.offset}+{span.length} is outside of {len(token_ids)} tokens")
        keep[span.offset + 1 : span.offset + span.length] = False
    return token_ids[keep]


def expand(
    token_ids: np.ndarray, images: Sequence[tuple[str, int]], *, image_token_id: int
) -> tuple[np.ndarray, tuple[ImageSpan, ...]]:
    """Repeat the i-th placeholder `images[i] = (digest, length)` times; the inverse of `collapse`."""
    places = np.flatnonzero(token_ids == image_token_id)
    if len(places) != len(images):
        raise RenderError(f"{len(places)} image placeholders for {len(images)} images")
    repeats = np.ones(len(token_ids), dtype=np.int64)
    for place, (_, length) in zip(places, images, strict=True):
        repeats[place] = length
    starts = np.cumsum(repeats) - repeats
    spans = tuple(
        ImageSpan(digest=digest, offset=int(starts[place]), length=length)
        for place, (digest, length) in zip(places, images, strict=True)
    )
    return np.repeat(token_ids, repeats), spans


def check_stream(token_ids: np.ndarray, image_spans: Sequence[ImageSpan], *, image_token_id: int) -> None:
    """Raise `RenderError` unless the placeholders of a stream are exactly its image spans."""
    is_image = token_ids == image_token_id
    covered = np.zeros(len(token_ids), dtype=bool)
    for span in image_spans:
        covered[span.offset : span.offset + span.length] = True
    if not np.array_equal(is_image, covered):
        raise RenderError(f"{int(is_image.sum())} image tokens, {int(covered.sum())} positions covered by image spans")
