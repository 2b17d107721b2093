"""One rank of the learner in plain torch: gradients of a batch, the update, weights out. Knows no lease, store or Ray.

Whoever leads the ranks calls, on all of them: `begin_batch` (gradients of the first optimizer minibatch), then either
`drop_gradients` (the lease has gone back: nothing has happened) or `finish_batch` (the update, and the other
minibatches). Methods marked *collective* must be called on every rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from medvista_ray.config.schema import LearnerConfig, PolicyConfig
from medvista_ray.errors import RunFailedError
from medvista_ray.learner.checkpoints import load_rank_state, save_rank_state
from medvista_ray.learner.losses import ActionTokens, compute_policy_loss, largest
from medvista_ray.learner.microbatches import MicroBatch, make_microbatch, prepare_images, score_actions
from medvista_ray.learner.optimizer import (
    clip_factor,
    global_grad_norm,
    make_optimizer,
    scale_gradients,
    set_lr,
    warmup_lr,
)
from medvista_ray.learner.packing import minibatch_indices, pad_plan, plan_microbatches
from medvista_ray.learner.process_group import RankAddress, join_group, leave_group
from medvista_ray.learner.reports import StepTally
from medvista_ray.learner.sharding import full_state, shard_policy
from medvista_ray.learner.weight_files import write_weight_file
from medvista_ray.policy.image_processor import ImageProcessor
from medvista_ray.policy.loading import Policy, load_policy, save_policy
from medvista_ray.types.samples import BatchShard, TrainingSample
from medvista_ray.types.sampling import SamplingSpec, WeightUpdate


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one train step did; the same on every rank."""

    metrics: Mapping[str, float]
    max_abs_logprob_diff: float | None  # nats, on tokens of the version trained from; None without any


@dataclass(kw_only=True, eq=False)
class _OpenBatch:
    shard: BatchShard
    images: Mapping[str, bytes]
    tally: StepTally
    proximal: dict[int, np.ndarray] = field(default_factory=dict)  # sample index -> float32 [T] before any update

    @property
    def is_updated(self) -> bool:
        """Return whether the weights are no longer those that the train step started from."""
        return bool(self.tally.grad_norms)


class LearnerRank:
    """One rank: policy, optimizer, and the batch that is being trained."""

    def __init__(
        self,
        config: LearnerConfig,
        *,
        policy_config: PolicyConfig,
        sampling: SamplingSpec,
        address: RankAddress | None = None,
    ) -> None:
        """Load the policy; join the group and shard where there is more than one rank, or bfloat16 to compute in.

        On one float32 rank the wrapping would change no number; it costs some 40 ms a step, and a process-wide group.
        """
        self._config = config
        self._sampling = sampling
        self._address = address or RankAddress()
        self._dtype: torch.dtype = getattr(torch, policy_config.dtype)
        self._policy = load_policy(policy_config.path, dtype="float32", device=policy_config.device)
        self._reference = self._load_reference(policy_config)
        self._processor = ImageProcessor(self._policy.folder)
        if self._address.world_size > 1 or self._dtype != torch.float32:
            join_group(self._address, device=self._policy.device)
            for policy in filter(None, (self._policy, self._reference)):
                shard_policy(policy, world_size=self._address.world_size, compute_dtype=self._dtype)
        self._optimizer = make_optimizer(
            self._policy.network, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
        )
        self._num_updates = 0
        self._open: _OpenBatch | None = None

    @property
    def num_updates(self) -> int:
        """Return how often the optimizer has stepped."""
        return self._num_updates

    @property
    def policy(self) -> Policy:
        """Return the policy being trained; its parameters are shards where there is more than one rank."""
        return self._policy

    # --- one train step
    def begin_batch(self, shard: BatchShard, images: Mapping[str, bytes]) -> None:
        """Compute the gradients of the first optimizer minibatch; weights and optimizer stay as they are. Collective.

        Args:
            shard: the samples of this rank; may be empty.
            images: encoded bytes of every digest that the samples name.
        """
        self._optimizer.zero_grad(set_to_none=True)
        tally = StepTally(device=self._policy.device)
        self._open = _OpenBatch(shard=shard, images=images, tally=tally)
        if self._config.minibatches > 1 and self._config.importance_cap > 0:
            self._score_later_minibatches(self._open)
        self.compute_gradients(0)

    def compute_gradients(self, minibatch_index: int) -> None:
        """Accumulate the gradients of one optimizer minibatch of the open batch. Collective."""
        batch = self._current()
        samples = batch.shard.samples
        chosen = minibatch_indices(len(samples), minibatches=self._config.minibatches, minibatch_index=minibatch_index)
        for rows in self._plan([len(samples[index].token_ids) for index in chosen]):
            self._backward(batch, [chosen[row] for row in rows])
        grad_norm = global_grad_norm(self._policy.network.parameters())
        if not math.isfinite(grad_norm):
            raise RunFailedError(
                f"the gradient norm of update {self._num_updates} is {grad_norm} (lease {batch.shard.lease_id}); "
                "lower learner.lr, or look at the rewards of that batch"
            )
        batch.tally.grad_norms.append(grad_norm)

    def apply_update(self) -> None:
        """Clip the gradients, step the optimizer, forget the gradients."""
        grad_norm = self._current().tally.grad_norms[-1]
        scale_gradients(self._policy.network.parameters(), clip_factor(grad_norm, self._config.max_grad_norm))
        set_lr(self._optimizer, self._lr())
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._num_updates += 1

    def drop_gradients(self) -> None:
        """Forget the open batch; weights and optimizer are as before it."""
        self._optimizer.zero_grad(set_to_none=True)
        self._open = None

    def finish_batch(self) -> StepResult:
        """Apply the first update and train the other minibatches. Collective."""
        batch = self._current()
        lr = self._lr()
        self.apply_update()
        for minibatch_index in range(1, self._config.minibatches):
            self.compute_gradients(minibatch_index)
            self.apply_update()
        batch.tally.reduce()
        self._open = None
        metrics = batch.tally.metrics(batch.shard, minibatches=self._config.minibatches, lr=lr)
        return StepResult(metrics=metrics, max_abs_logprob_diff=batch.tally.max_abs_logprob_diff)

    # --- probes, weights, checkpoints
    def compute_logprobs(self, samples: Sequence[TrainingSample], images: Mapping[str, bytes]) -> list[np.ndarray]:
        """Return float32 [L] nats for each sample, 0.0 off the mask. Collective."""
        result = [np.zeros(len(sample.token_ids), np.float32) for sample in samples]
        with torch.no_grad():
            for rows in self._plan([len(sample.token_ids) for sample in samples]):
                microbatch = self._microbatch([samples[row] for row in rows], images)
                scores = score_actions(self._policy.network, microbatch, self._sampling).logprobs_T.cpu().numpy()
                for row, logprobs in zip(rows, _split(scores, [samples[row] for row in rows]), strict=True):
                    result[row][samples[row].loss_mask] = logprobs
        return result

    def full_state_dict(self) -> dict[str, Tensor]:
        """Return the full weights by the model's own names in `policy.dtype`; empty but on rank 0. Collective."""
        return full_state(self._policy.model, dtype=self._dtype, keep=self._address.rank == 0)

    def write_weights(self, policy_version: int, folder: Path) -> WeightUpdate | None:
        """Write the weights for the engines; the update on rank 0, None elsewhere. Collective."""
        state = self.full_state_dict()
        return write_weight_file(state, policy_version, folder) if self._address.rank == 0 else None

    def save_checkpoint(self, folder: Path) -> None:
        """Write what this rank holds (weights, optimizer, RNG, counter) into an existing folder."""
        save_rank_state(
            folder, self._address, self._policy.model, self._optimizer, counters={"num_updates": self._num_updates}
        )

    def load_checkpoint(self, folder: Path) -> None:
        """Restore what `save_checkpoint` wrote with as many ranks; `ConfigError` says what does not fit."""
        self.drop_gradients()
        counters = load_rank_state(folder, self._address, self._policy.model, self._optimizer)
        self._num_updates = counters["num_updates"]

    def export(self, folder: Path) -> None:
        """Write an ordinary Hugging Face folder in `policy.dtype`, from rank 0. Collective."""
        state = self.full_state_dict()
        if self._address.rank == 0:
            save_policy(self._policy, folder, state=state)

    def close(self) -> None:
        """Leave the group."""
        leave_group()

    # --- inside one minibatch
    def _backward(self, batch: _OpenBatch, indices: Sequence[int]) -> None:
        samples = [batch.shard.samples[index] for index in indices]
        microbatch = self._microbatch(samples, batch.images)
        scores = score_actions(self._policy.network, microbatch, self._sampling)
        tokens = ActionTokens(
            learner_logprobs_T=scores.logprobs_T,
            rollout_logprobs_T=self._join([sample.logprobs[sample.loss_mask] for sample in samples]),
            advantages_T=self._join([sample.advantages[sample.loss_mask] for sample in samples]),
            sequence_T=microbatch.sequence_T,
            is_held_version_T=self._is_held_version(batch, samples),
            entropy_T=scores.entropy_T,
            proximal_logprobs_T=self._proximal(batch, indices),
            reference_logprobs_T=self._reference_logprobs(microbatch),
        )
        totals, scale = batch.shard.totals, float(self._config.minibatches)
        result = compute_policy_loss(tokens, totals, self._config, scale=scale)
        to_sum = float(self._address.world_size)  # FSDP2 averages over ranks, the losses of ranks add up
        torch.autograd.backward(to_sum * (result.loss + scores.anchor))
        batch.tally.num_microbatches += 1
        batch.tally.add_loss(result)
        batch.tally.add_rows(
            reward=sum(sample.reward for sample in samples),
            padded_tokens=0 if microbatch.is_dummy else microbatch.inputs.token_ids.numel(),
            tokens=sum(len(sample.token_ids) for sample in samples),
        )

    def _score_later_minibatches(self, batch: _OpenBatch) -> None:
        """Keep the logprobs before the first update: they are the proximal policy of the minibatches after it."""
        samples = batch.shard.samples
        first = set(minibatch_indices(len(samples), minibatches=self._config.minibatches, minibatch_index=0))
        later = [index for index in range(len(samples)) if index not in first]
        scored = self.compute_logprobs([samples[index] for index in later], batch.images)
        for index, logprobs in zip(later, scored, strict=True):
            sample = samples[index]
            batch.proximal[index] = logprobs[sample.loss_mask]
            diff = self._join([np.abs(logprobs - sample.logprobs)[sample.loss_mask]])
            batch.tally.add_logprob_diff(largest(diff[self._is_held_version(batch, [sample])]))

    def _is_held_version(self, batch: _OpenBatch, samples: Sequence[TrainingSample]) -> Tensor:
        """Return bool [T]: before the first update, the tokens that the very weights held here have sampled."""
        held: list[np.ndarray] = [np.empty(0, bool)]
        for sample in samples:
            of_sample = np.zeros(len(sample.token_ids), bool)
            for span in sample.version_spans:
                is_held = span.policy_version == batch.shard.train_from_version and not batch.is_updated
                of_sample[span.start : span.end] = is_held
            held.append(of_sample[sample.loss_mask])
        return torch.from_numpy(np.concatenate(held)).to(self._policy.device)

    def _proximal(self, batch: _OpenBatch, indices: Sequence[int]) -> Tensor | None:
        if not batch.is_updated or self._config.importance_cap == 0:
            return None
        return self._join([batch.proximal[index] for index in indices])

    def _reference_logprobs(self, microbatch: MicroBatch) -> Tensor | None:
        if self._reference is None:
            return None
        with torch.no_grad():
            return score_actions(self._reference.network, microbatch, self._sampling).logprobs_T

    def _microbatch(self, samples: Sequence[TrainingSample], images: Mapping[str, bytes]) -> MicroBatch:
        prepared = prepare_images(samples, images, self._processor)
        return make_microbatch(samples, prepared, self._policy, device=self._policy.device)

    def _plan(self, lengths: Sequence[int]) -> list[tuple[int, ...]]:
        """Plan microbatches, as many as the rank with the most (at least one). Collective."""
        plan = plan_microbatches(lengths, max_tokens=self._config.microbatch_tokens)
        most = torch.tensor(max(1, len(plan)), device=self._policy.device)
        if self._address.world_size > 1:
            dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return pad_plan(plan, int(most))

    def _join(self, parts: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate([np.empty(0, np.float32), *parts])).to(self._policy.device)

    def _lr(self) -> float:
        return warmup_lr(self._num_updates, lr=self._config.lr, warmup_steps=self._config.warmup_steps)

    def _current(self) -> _OpenBatch:
        if self._open is None:
            raise RuntimeError("no batch is open: call begin_batch first")
        return self._open

    def _load_reference(self, policy_config: PolicyConfig) -> Policy | None:
        if self._config.kl_coefficient == 0:
            return None
        reference = load_policy(policy_config.path, dtype="float32", device=policy_config.device)
        reference.network.requires_grad_(False)
        return reference


def _split(values_T: np.ndarray, samples: Sequence[TrainingSample]) -> list[np.ndarray]:
    ends = np.cumsum([int(sample.loss_mask.sum()) for sample in samples])
    return np.split(values_T, ends[:-1]) if samples else []
