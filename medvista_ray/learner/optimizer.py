"""AdamW, gradient norms over shards, and learning-rate schedules. Knows parameters; not losses."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from medvista_ray.learner.sharding import local_part


def make_optimizer(
    network: nn.Module, *, lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """Return AdamW; vectors (norms, biases) are not decayed."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def global_grad_norm(parameters: Iterable[nn.Parameter]) -> float:
    """Return the L2 norm of all gradients of all ranks; a collective where parameters are sharded."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = [torch.linalg.vector_norm(local_part(grad)).double() for grad in grads]
    squares = torch.stack(norms).square().sum() if norms else torch.zeros((), dtype=torch.float64)
    if grads and isinstance(grads[0], DTensor):
        dist.all_reduce(squares)
    return math.sqrt(float(squares))


def scale_gradients(parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Multiply every gradient in place."""
    local: list[Tensor] = [local_part(p.grad) for p in parameters if p.grad is not None]
    if local and factor != 1.0:
        torch._foreach_mul_(local, factor)


def clip_factor(grad_norm: float, max_norm: float) -> float:
    """Return what to multiply gradients by so that their norm is at most `max_norm`."""
    return min(1.0, max_norm / (grad_norm + 1e-6))


def warmup_lr(update_index: int, *, lr: float, warmup_steps: int) -> float:
    """Rise linearly over the first `warmup_steps` updates (index from 0), then stay."""
    return lr * min(1.0, (update_index + 1) / max(warmup_steps, 1))


def cosine_lr(update_index: int, *, lr: float, warmup_steps: int, total_steps: int, min_lr_ratio: float) -> float:
    """Rise linearly, then fall along half a cosine to `min_lr_ratio` of the peak at the last update."""
    if update_index < warmup_steps:
        return lr * (update_index + 1) / warmup_steps
    progress = min(1.0, (update_index - warmup_steps) / max(1, total_steps - 1 - warmup_steps))
    return lr * (min_lr_ratio + (1.0 - min_lr_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress)))
