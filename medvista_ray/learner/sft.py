"""Supervised fine-tuning on trajectories: cross-entropy on the action tokens, under the forward pass of RL.

One process, no lease, no engine. Knows records and a policy; not where trajectories come from or what they show.

Threads: on CPU each of `num_threads` workers runs whole microbatches on one core, and gradients are added in the order
of the microbatches. An OpenMP pool that splits every operator meets at a barrier thousands of times a step, and falls
behind one thread as soon as anything else wants a core.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medvista_ray.config.schema import PolicyConfig, SFTConfig
from medvista_ray.errors import DataError, RunFailedError
from medvista_ray.learner.checkpoints import load_rank_state, save_rank_state
from medvista_ray.learner.microbatches import MicroBatch, make_microbatch, prepare_images, score_actions
from medvista_ray.learner.optimizer import (
    clip_factor,
    cosine_lr,
    global_grad_norm,
    make_optimizer,
    scale_gradients,
    set_lr,
)
from medvista_ray.learner.packing import plan_microbatches, split_plan
from medvista_ray.learner.process_group import RankAddress
from medvista_ray.policy.image_processor import ImageProcessor
from medvista_ray.policy.loading import load_policy, save_policy
from medvista_ray.types.sampling import SamplingSpec
from medvista_ray.types.trajectories import Trajectory

BETAS = (0.9, 0.95)
_PLAIN = SamplingSpec()  # temperature 1, nothing banned: banned tokens are learned to be unlikely


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTStep:
    """One optimizer update, as progress is told."""

    step: int  # updates done, from 1
    steps: int  # updates in all
    loss: float  # nats, mean over action tokens of the batch
    lr: float
    grad_norm: float  # before clipping
    num_tokens: int
    num_action_tokens: int


class SupervisedTrainer:
    """Trains a policy on trajectories; the order is a function of the seed, so a resumed run ends the same."""

    def __init__(
        self,
        config: SFTConfig,
        *,
        policy_config: PolicyConfig,
        trajectories: Sequence[Trajectory],
        images: Mapping[str, bytes],
        seed: int,
    ) -> None:
        """Load the policy to train.

        Args:
            config: the schedule.
            policy_config: where training starts; compute and weights are float32 whatever its dtype.
            trajectories: what to imitate; rewards and logprobs are not looked at.
            images: encoded bytes of every digest that the trajectories name.
            seed: of the order of trajectories.
        """
        if not trajectories:
            raise DataError("there is no trajectory to train on; check the cold start's filter")
        self._config = config
        self._trajectories = trajectories
        self._images = images
        self._seed = seed
        self._policy = load_policy(policy_config.path, dtype="float32", device=policy_config.device)
        self._processor = ImageProcessor(self._policy.folder)
        self._optimizer = make_optimizer(self._policy.network, lr=config.lr, betas=BETAS, weight_decay=0.0)
        self._parameters = list(self._policy.network.parameters())
        self._steps_done = 0

    @property
    def steps_done(self) -> int:
        """Return how many updates have been made."""
        return self._steps_done

    def run(self, *, on_step: Callable[[SFTStep], None] | None = None) -> None:
        """Make the remaining updates; `on_step` may raise to stop between two of them."""
        with _one_thread_an_operator(), ThreadPoolExecutor(self._num_workers, "sft") as workers:
            while self._steps_done < self._config.steps:
                done = self._train_step(workers)
                if on_step is not None:
                    on_step(done)

    @property
    def _num_workers(self) -> int:
        return self._config.num_threads if self._policy.device.type == "cpu" else 1

    def _train_step(self, workers: Executor) -> SFTStep:
        batch = [self._trajectories[index] for index in self._batch_indices(self._steps_done)]
        num_action_tokens = sum(trajectory.num_action_tokens for trajectory in batch)
        loss = self._compute_gradients(batch, num_action_tokens, workers)
        grad_norm = global_grad_norm(self._parameters)
        if not math.isfinite(grad_norm):
            raise RunFailedError(f"the gradient norm of SFT step {self._steps_done} is {grad_norm}; lower sft.lr")
        scale_gradients(self._parameters, clip_factor(grad_norm, self._config.max_grad_norm))
        lr = cosine_lr(
            self._steps_done,
            lr=self._config.lr,
            warmup_steps=self._config.warmup_steps,
            total_steps=self._config.steps,
            min_lr_ratio=self._config.min_lr_ratio,
        )
        set_lr(self._optimizer, lr)
        self._optimizer.step()
        self._steps_done += 1
        return SFTStep(
            step=self._steps_done,
            steps=self._config.steps,
            loss=loss,
            lr=lr,
            grad_norm=grad_norm,
            num_tokens=sum(len(trajectory.token_ids) for trajectory in batch),
            num_action_tokens=num_action_tokens,
        )

    def save_state(self, folder: Path) -> None:
        """Write weights, optimizer, RNG and the step into an existing folder."""
        save_rank_state(
            folder, RankAddress(), self._policy.model, self._optimizer, counters={"steps_done": self._steps_done}
        )

    def load_state(self, folder: Path) -> None:
        """Restore what `save_state` wrote; the same trajectories and seed then give the same weights."""
        counters = load_rank_state(folder, RankAddress(), self._policy.model, self._optimizer)
        self._steps_done = counters["steps_done"]

    def export(self, folder: Path) -> None:
        """Write the policy as an ordinary Hugging Face folder."""
        save_policy(self._policy, folder)

    def _compute_gradients(self, batch: Sequence[Trajectory], num_action_tokens: int, workers: Executor) -> float:
        """Leave the gradient of the mean cross-entropy of a batch; return that mean, nats."""
        lengths = [len(trajectory.token_ids) for trajectory in batch]
        plan = plan_microbatches(lengths, max_tokens=self._config.microbatch_tokens)
        running = []
        for rows in split_plan(plan, self._num_workers):
            streams = [batch[row] for row in rows]
            images = prepare_images(streams, self._images, self._processor)
            microbatch = make_microbatch(streams, images, self._policy, device=self._policy.device)
            running.append(workers.submit(self._gradients_of, microbatch, num_action_tokens))
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in running:
            loss, gradients = part.result()
            total += loss
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return total

    def _gradients_of(self, microbatch: MicroBatch, num_action_tokens: int) -> tuple[float, tuple[Tensor, ...]]:
        scores = score_actions(self._policy.network, microbatch, _PLAIN)
        loss = -scores.logprobs_T.sum() / num_action_tokens
        return float(loss.detach()), torch.autograd.grad(loss + scores.anchor, self._parameters)

    def _batch_indices(self, step: int) -> list[int]:
        """Return the batch of one step: consecutive pieces of one seeded permutation after another."""
        size, count = self._config.batch_size, len(self._trajectories)
        positions = range(step * size, (step + 1) * size)
        orders = {epoch: self._order(epoch) for epoch in {position // count for position in positions}}
        return [int(orders[position // count][position % count]) for position in positions]

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._trajectories))


@contextmanager
def _one_thread_an_operator() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
