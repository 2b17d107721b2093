"""FSDP2 around a policy, and its full weights out of the shards. Knows modules and meshes; not batches or files."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from medvista_ray.policy.loading import Policy
from medvista_ray.policy.weights import named_weights


def shard_policy(policy: Policy, *, world_size: int, compute_dtype: torch.dtype) -> None:
    """Shard decoder layers, vision blocks and the root over all ranks, in place.

    Parameters stay float32 in the shards (an update of 1e-6 would vanish in bfloat16) and are gathered as
    `compute_dtype`. Gradients are *averaged* over ranks, as gloo can do no other: multiply losses by `world_size`.
    """
    mesh = init_device_mesh(policy.device.type, (world_size,))
    precision = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    core = policy.model.model
    for part in (*core.language_model.layers, *core.visual.blocks, policy.network):
        fully_shard(part, mesh=mesh, mp_policy=precision)


def local_part(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a parameter, a gradient or an optimizer state."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_state(model: nn.Module, *, dtype: torch.dtype, keep: bool) -> dict[str, Tensor]:
    """Gather the weights by the model's own names, on CPU; every rank calls it, those with `keep` False get nothing."""
    state: dict[str, Tensor] = {}
    for name, tensor in named_weights(model).items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            target = dtype if full.is_floating_point() else full.dtype
            state[name] = full.detach().to(device="cpu", dtype=target, copy=True).contiguous()
    return state
