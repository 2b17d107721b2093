"""What a train step reports: sums and maxima over microbatches, minibatches and ranks -> metrics. Knows numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from medvista_ray.learner.losses import MAXIMA, SUMS, LossResult
from medvista_ray.types.samples import BatchShard

_SHARD_SUMS = ("reward", "padded_tokens", "tokens")


@dataclass(kw_only=True)
class StepTally:
    """Adds up one train step on one rank; `reduce` makes it the same on every rank."""

    device: torch.device
    sums: Tensor = field(init=False)  # float64 [len(SUMS) + len(_SHARD_SUMS)]
    maxima: Tensor = field(init=False)  # float64 [len(MAXIMA)]
    grad_norms: list[float] = field(default_factory=list)
    num_microbatches: int = 0

    def __post_init__(self) -> None:
        self.sums = torch.zeros(len(SUMS) + len(_SHARD_SUMS), dtype=torch.float64, device=self.device)
        self.maxima = torch.full((len(MAXIMA),), -1.0, dtype=torch.float64, device=self.device)

    def add_loss(self, result: LossResult) -> None:
        """Add the statistics of one microbatch."""
        self.sums[: len(SUMS)] += result.sums
        self.maxima = torch.maximum(self.maxima, result.maxima)

    def add_logprob_diff(self, diff: Tensor) -> None:
        """Add a difference between engine and learner seen outside the loss, nats; -1 is none."""
        index = MAXIMA.index("abs_logprob_diff")
        self.maxima[index] = torch.maximum(self.maxima[index], diff)

    def add_rows(self, *, reward: float, padded_tokens: int, tokens: int) -> None:
        """Add the sum of rewards and the tokens of one microbatch."""
        self.sums[len(SUMS) :] += torch.tensor([reward, padded_tokens, tokens], dtype=torch.float64).to(self.device)

    def reduce(self) -> None:
        """Add up over ranks, once; a collective where there is more than one."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(self.sums)
            dist.all_reduce(self.maxima, op=dist.ReduceOp.MAX)

    def metrics(self, shard: BatchShard, *, minibatches: int, lr: float) -> dict[str, float]:
        """Return metrics by name; means are over the action tokens of the whole batch."""
        totals = shard.totals
        values = dict(zip((*SUMS, *_SHARD_SUMS), self.sums.tolist(), strict=True))
        metrics = {f"learner/{name}/mean": values[name] / max(totals.num_action_tokens, 1) for name in SUMS[1:]}
        return metrics | {
            "learner/loss/mean": values["loss"] / minibatches,
            "learner/ratio/max": float(self.maxima[MAXIMA.index("ratio")]),
            "learner/reward/mean": values["reward"] / max(totals.num_samples, 1),
            "learner/padding/share": 1.0 - values["tokens"] / max(values["padded_tokens"], 1.0),
            "learner/grad_norm/l2": sum(self.grad_norms) / max(len(self.grad_norms), 1),
            "learner/microbatches/count": float(self.num_microbatches),
            "learner/samples/count": float(totals.num_samples),
            "learner/action_tokens/count": float(totals.num_action_tokens),
            "learner/lr/rate": lr,
        }

    @property
    def max_abs_logprob_diff(self) -> float | None:
        """Return the largest |rollout - learner| over tokens of the version trained from, nats; None without any."""
        largest = float(self.maxima[MAXIMA.index("abs_logprob_diff")])
        return None if largest == -1.0 else largest
