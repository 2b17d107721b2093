"""The append-only token stream of one episode. Knows ids, masks and spans; not what they mean.

Nothing is ever taken back: the prompt of a turn has the stream of the turn before as exact prefix.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medvista_ray.errors import RenderError
from medvista_ray.rendering.renderer import RenderedTokens
from medvista_ray.rendering.spans import check_stream
from medvista_ray.types.sampling import GenerateResult
from medvista_ray.types.trajectories import ImageSpan, VersionSpan


class TokenStream:
    """Grows by observations (mask False) and actions (mask True)."""

    def __init__(self) -> None:
        self._token_ids: list[np.ndarray] = []
        self._loss_mask: list[np.ndarray] = []
        self._logprobs: list[np.ndarray] = []
        self._image_spans: list[ImageSpan] = []
        self._version_spans: list[VersionSpan] = []
        self._length = 0

    def __len__(self) -> int:
        """Count the tokens so far."""
        return self._length

    @property
    def image_spans(self) -> tuple[ImageSpan, ...]:
        """Return where the images stand."""
        return tuple(self._image_spans)

    @property
    def version_spans(self) -> tuple[VersionSpan, ...]:
        """Return which policy version sampled which tokens."""
        return tuple(self._version_spans)

    def append_observation(self, rendered: RenderedTokens) -> None:
        """Append tokens that the policy reads."""
        self._image_spans.extend(
            ImageSpan(digest=span.digest, offset=span.offset + self._length, length=span.length)
            for span in rendered.image_spans
        )
        count = len(rendered.token_ids)
        self._append(rendered.token_ids, np.zeros(count, bool), np.zeros(count, np.float32))

    def append_action(self, result: GenerateResult) -> tuple[int, int]:
        """Append tokens that the policy sampled; return their [start, end)."""
        if result.prompt_length != self._length:
            raise RenderError(f"the engine saw a prompt of {result.prompt_length} tokens, ours has {self._length}")
        if len(result.token_ids) != len(result.logprobs) or len(result.token_ids) == 0:
            raise RenderError(f"{len(result.token_ids)} action tokens with {len(result.logprobs)} logprobs")
        start = self._length
        self._version_spans.extend(
            VersionSpan(policy_version=span.policy_version, start=span.start + start, end=span.end + start)
            for span in result.version_spans
        )
        self._append(result.token_ids, np.ones(len(result.token_ids), bool), result.logprobs)
        return start, self._length

    def token_ids(self) -> np.ndarray:
        """Return int32 [L]."""
        return _join(self._token_ids, np.int32)

    def loss_mask(self) -> np.ndarray:
        """Return bool [L]."""
        return _join(self._loss_mask, np.bool_)

    def logprobs(self) -> np.ndarray:
        """Return float32 [L], nats."""
        return _join(self._logprobs, np.float32)

    def check(self, *, image_token_id: int, banned_token_ids: Sequence[int]) -> None:
        """Raise `RenderError` unless spans, sampled ids and logprobs obey the rules of the record."""
        token_ids, loss_mask, logprobs = self.token_ids(), self.loss_mask(), self.logprobs()
        check_stream(token_ids, self._image_spans, image_token_id=image_token_id)
        if np.isin(token_ids[loss_mask], banned_token_ids).any():
            raise RenderError("a banned token was sampled")
        if not np.isfinite(logprobs).all():
            raise RenderError("a logprob is not finite")
        covered = np.zeros(len(token_ids), dtype=np.int32)
        for span in self._version_spans:
            covered[span.start : span.end] += 1
        if not np.array_equal(covered, loss_mask):
            raise RenderError(f"version spans cover {int(covered.sum())} of {int(loss_mask.sum())} action tokens once")

    def _append(self, token_ids: np.ndarray, loss_mask: np.ndarray, logprobs: np.ndarray) -> None:
        self._token_ids.append(token_ids.astype(np.int32, copy=False))
        self._loss_mask.append(loss_mask)
        self._logprobs.append(logprobs.astype(np.float32, copy=False))
        self._length += len(token_ids)


def _join(parts: Sequence[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.zeros(0, dtype)
