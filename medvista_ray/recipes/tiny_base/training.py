"""Pre-train the tiny base: a dense warm-up of the vision tower, then perception in words with the dense losses kept.

Plain supervised training on one process; knows the perception items and the one forward pass.
Axes: B items, I images, F visual tokens (9 an image), D hidden, K answer tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from medvista_ray.data.letters import LETTERS
from medvista_ray.policy.image_processor import ImageProcessor, PreparedImages
from medvista_ray.policy.inputs import PolicyInputs, PolicyRow, make_inputs
from medvista_ray.policy.loading import Policy
from medvista_ray.recipes.tiny_base.perception import GRID, NOTHING, NUM_TOKENS, DenseView, PerceptionItem
from medvista_ray.recipes.tiny_base.perception import PerceptionSource as Source
from medvista_ray.rendering.renderer import QwenRenderer
from medvista_ray.types.messages import ImagePart, ImageRef, Message, Part, TextPart
from medvista_ray.types.trajectories import ImageSpan

logger = logging.getLogger(__name__)
IGNORE = -100
_RING_WEIGHTS = (1.0, 4.0)  # rings are one token in nine
_LETTER_WEIGHTS = (3.0, 3.0, 3.0, 3.0, 1.0)
_NO_LETTER = len(LETTERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainSettings:
    """Steps and rates; budgets are in steps, since machines differ in speed."""

    dense_steps: int = 220
    language_steps: int = 1350
    batch_size: int = 64
    dense_lr: float = 2e-3
    language_lr: float = 2e-3
    dense_weight: float = 0.3
    seed: int = 0


class DenseHeads(nn.Module):
    """Linear probes on visual tokens; thrown away after pre-training."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.letter = nn.Linear(hidden_size, len(LETTERS) + 1)
        self.ring = nn.Linear(hidden_size, 2)
        self.place = nn.Linear(hidden_size, NUM_TOKENS)

    def loss(self, hidden_FD: torch.Tensor, views: Sequence[DenseView]) -> torch.Tensor:
        """Return the sum of the three cross-entropies over the visual tokens of the views."""
        x = self.norm(hidden_FD)
        rings, letters = dense_labels(views)
        place = functional.cross_entropy(self.place(x), torch.arange(NUM_TOKENS).repeat(len(views)))
        loss = 0.3 * place
        if (rings != IGNORE).any():
            loss = loss + functional.cross_entropy(self.ring(x), rings, weight=torch.tensor(_RING_WEIGHTS))
        if (letters != IGNORE).any():
            loss = loss + functional.cross_entropy(self.letter(x), letters, weight=torch.tensor(_LETTER_WEIGHTS))
        return loss


def dense_labels(views: Sequence[DenseView]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ring and letter labels, int64 [F]; the neighbours of a letter's token are not trained on."""
    rings = np.full((len(views), NUM_TOKENS), IGNORE)
    letters = np.full((len(views), NUM_TOKENS), IGNORE)
    for i, view in enumerate(views):
        if view.ring >= 0:
            rings[i] = 0
            if view.ring != NOTHING:
                rings[i, view.ring] = 1
        if view.letter_at >= 0:
            letters[i] = _NO_LETTER
        if 0 <= view.letter_at < NOTHING:
            row, column = divmod(view.letter_at, GRID)
            square = letters[i].reshape(GRID, GRID)
            square[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = IGNORE
            letters[i, view.letter_at] = view.letter
    return torch.from_numpy(rings.reshape(-1)), torch.from_numpy(letters.reshape(-1))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PerceptionBatch:
    """Items as tensors."""

    inputs: PolicyInputs
    views: tuple[DenseView, ...]  # in the order of inputs.digests
    positions_K: torch.Tensor  # index into [B * W] of the token before each answer token
    targets_K: torch.Tensor
    item_K: torch.Tensor  # which item each answer token belongs to


class Collator:
    """Turns items into one padded batch, through the renderer that rollouts use."""

    def __init__(self, renderer: QwenRenderer, processor: ImageProcessor) -> None:
        self._renderer = renderer
        self._processor = processor

    def collate(self, items: Sequence[PerceptionItem]) -> PerceptionBatch:
        """Render, process the images in one call, and pad."""
        views = [view for item in items for view in item.views]
        prepared = self._processor.prepare([view.pixels for view in views]).split()
        images: dict[str, PreparedImages] = {}
        rows: list[PolicyRow] = []
        masks: list[np.ndarray] = []
        by_digest: dict[str, DenseView] = {}
        taken = 0
        for item in items:
            count = len(item.views)
            digests = [hashlib.sha256(view.pixels.tobytes()).hexdigest() for view in item.views]
            images |= dict(zip(digests, prepared[taken : taken + count], strict=True))
            by_digest |= dict(zip(digests, item.views, strict=True))
            taken += count
            row, mask = self._render(item, digests)
            rows.append(row)
            masks.append(mask)
        inputs = make_inputs(rows, images, pad_left=False)
        width = inputs.width
        flat = np.concatenate([b * width + np.flatnonzero(mask) for b, mask in enumerate(masks)])
        return PerceptionBatch(
            inputs=inputs,
            views=tuple(by_digest[digest] for digest in inputs.digests),
            positions_K=torch.from_numpy(flat - 1),
            targets_K=inputs.token_ids.flatten()[torch.from_numpy(flat)],
            item_K=torch.from_numpy(np.concatenate([np.full(int(mask.sum()), b) for b, mask in enumerate(masks)])),
        )

    def _render(self, item: PerceptionItem, digests: Sequence[str]) -> tuple[PolicyRow, np.ndarray]:
        ids: list[np.ndarray] = []
        mask: list[np.ndarray] = []
        spans: list[ImageSpan] = []
        length = used = 0
        for number, exchange in enumerate(item.exchanges):
            refs = [
                ImageRef(digest=digest, width=view.pixels.shape[1], height=view.pixels.shape[0])
                for digest, view in zip(digests[used:], exchange.views, strict=False)
            ]
            used += len(exchange.views)
            parts: tuple[Part, ...] = (*(ImagePart(image=ref) for ref in refs), TextPart(text=exchange.question))
            message = Message(role="user", parts=parts)
            rendered = (
                self._renderer.render_observation((message,), action_has_stop=True)
                if number
                else self._renderer.render_prompt((message,))
            )
            answer = self._renderer.encode_action(exchange.answer)
            spans.extend(
                ImageSpan(digest=span.digest, offset=span.offset + length, length=span.length)
                for span in rendered.image_spans
            )
            ids.extend((rendered.token_ids, answer))
            mask.extend((np.zeros(len(rendered.token_ids), bool), np.ones(len(answer), bool)))
            length += len(rendered.token_ids) + len(answer)
        return PolicyRow(token_ids=np.concatenate(ids), image_spans=tuple(spans)), np.concatenate(mask)


class Pretrainer:
    """Owns the model, the heads and the two optimizers in turn."""

    def __init__(self, policy: Policy, renderer: QwenRenderer, settings: PretrainSettings) -> None:
        self._policy = policy
        self._settings = settings
        self._collator = Collator(renderer, ImageProcessor(policy.folder, cache_bytes=0))
        torch.manual_seed(settings.seed)
        self.heads = DenseHeads(policy.model.config.text_config.hidden_size)

    def run(self, source: Source, *, on_step: Callable[[str, int, float], None]) -> None:
        """Train both phases; `on_step(phase, step, loss)` after every update."""
        settings = self._settings
        rng = np.random.default_rng(settings.seed)
        vision = [*self._policy.model.model.visual.parameters(), *self.heads.parameters()]
        optimizer = torch.optim.AdamW(vision, lr=settings.dense_lr, betas=(0.9, 0.98), weight_decay=0.01)
        for step in range(settings.dense_steps):
            batch = self._collator.collate(source.draw_mixture(rng, settings.batch_size, Source.DENSE_MIXTURE))
            assert batch.inputs.images is not None
            features = self._policy.network.encode(batch.inputs.images)
            loss = self.heads.loss(features.hidden, batch.views)
            rate = _rate(step / settings.dense_steps * 0.7, step, warmup=20, floor=0.3)
            _update(optimizer, loss, vision, settings.dense_lr * rate)
            on_step("dense", step, float(loss.detach()))
        everything = [*self._policy.model.parameters(), *self.heads.parameters()]
        optimizer = torch.optim.AdamW(everything, lr=settings.language_lr, betas=(0.9, 0.98), weight_decay=0.01)
        for step in range(settings.language_steps):
            batch = self._collator.collate(source.draw_mixture(rng, settings.batch_size, Source.MIXTURE))
            loss = self._language_loss(batch)
            rate = _rate(step / settings.language_steps, step, warmup=50, floor=0.05)
            _update(optimizer, loss, everything, settings.language_lr * rate)
            on_step("language", step, float(loss.detach()))

    def _language_loss(self, batch: PerceptionBatch) -> torch.Tensor:
        network = self._policy.network
        assert batch.inputs.images is not None
        features = network.encode(batch.inputs.images)
        logits_KV = network(batch.inputs, features=features, positions_to_project=batch.positions_K)
        answers = functional.cross_entropy(logits_KV, batch.targets_K)
        return answers + self._settings.dense_weight * self.heads.loss(features.hidden, batch.views)

    @torch.no_grad()
    def accuracy(self, source: Source, kind: str, *, count: int, seed: int = 11) -> float:
        """Return the share of items whose whole answer is the greedy one (teacher-forced: the same thing)."""
        rng = np.random.default_rng(seed)
        right = 0
        for start in range(0, count, self._settings.batch_size):
            size = min(self._settings.batch_size, count - start)
            batch = self._collator.collate([source.draw(rng, kind) for _ in range(size)])
            logits_KV = self._policy.network(batch.inputs, positions_to_project=batch.positions_K)
            wrong = batch.item_K[logits_KV.argmax(-1) != batch.targets_K]
            right += size - len(set(wrong.tolist()))
        return right / count


def _rate(progress: float, step: int, *, warmup: int, floor: float) -> float:
    """Linear warm-up, then a cosine from 1 down to `floor`."""
    return min(1.0, (step + 1) / warmup) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def _update(
    optimizer: torch.optim.Optimizer, loss: torch.Tensor, parameters: Sequence[nn.Parameter], rate: float
) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(parameters, 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


class StepLog:
    """Logs the running loss every `every` steps, with seconds so far; keeps the losses of each phase."""

    def __init__(self, every: int = 50) -> None:
        self._every = every
        self._losses: dict[str, list[float]] = {}
        self._start = time.monotonic()

    def __call__(self, phase: str, step: int, loss: float) -> None:
        """Take one step's loss."""
        losses = self._losses.setdefault(phase, [])
        losses.append(loss)
        if (step + 1) % self._every == 0:
            mean = sum(losses[-self._every :]) / self._every
            logger.info("%s step %d loss %.4f after %.0f s", phase, step + 1, mean, time.monotonic() - self._start)

    def ends(self, count: int = 5) -> dict[str, tuple[float, float]]:
        """Return the mean of the first and of the last `count` losses of each phase."""
        return {
            phase: (sum(losses[:count]) / len(losses[:count]), sum(losses[-count:]) / len(losses[-count:]))
            for phase, losses in self._losses.items()
        }
