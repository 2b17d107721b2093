"""The state of one rank on disk: local weights and optimizer as safetensors, counters as JSON; never pickle.

Every rank writes what it holds, so saving needs no collective and loading is exact; it takes as many ranks as before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medvista_ray.errors import ConfigError
from medvista_ray.learner.process_group import RankAddress
from medvista_ray.learner.sharding import local_part

FORMAT = 1
_RNG = "rng/torch"


def save_rank_state(
    folder: Path,
    address: RankAddress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    counters: Mapping[str, int],
) -> None:
    """Write `rank-<n>.safetensors` and `rank-<n>.json` into an existing folder."""
    tensors: dict[str, Tensor] = {_RNG: torch.get_rng_state()}
    for name, parameter in model.named_parameters():
        tensors[f"model/{name}"] = local_part(parameter.detach())
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{key}/{name}"] = local_part(value)
    copies = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(copies, folder / f"rank-{address.rank}.safetensors")
    header = {"format": FORMAT, "world_size": address.world_size, "counters": dict(counters)}
    (folder / f"rank-{address.rank}.json").write_text(json.dumps(header, sort_keys=True))


def load_rank_state(
    folder: Path, address: RankAddress, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, int]:
    """Restore what `save_rank_state` wrote, bit for bit, and return its counters."""
    path = folder / f"rank-{address.rank}.json"
    if not path.is_file():
        raise ConfigError(f"{folder} holds no learner state for rank {address.rank}; give a checkpoint of this run")
    header = json.loads(path.read_text())
    if header["format"] != FORMAT:
        raise ConfigError(f"{path} has format {header['format']}, this version reads {FORMAT}")
    if header["world_size"] != address.world_size:
        raise ConfigError(
            f"{folder} was written by learner.world_size={header['world_size']}, got {address.world_size}; "
            "resume with as many ranks, or start from the exported policy"
        )
    tensors = load_file(folder / f"rank-{address.rank}.safetensors")
    torch.set_rng_state(tensors.pop(_RNG))
    by_name = dict(model.named_parameters())
    _check_names(folder, tensors, by_name)
    with torch.no_grad():
        for name, parameter in by_name.items():
            local_part(parameter).copy_(tensors[f"model/{name}"])
    _restore_optimizer(tensors, by_name, optimizer)
    return {key: int(value) for key, value in header["counters"].items()}


def _restore_optimizer(
    tensors: Mapping[str, Tensor], by_name: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Hand AdamW its moments; they get the layout of their parameter (a shard, a device), the step stays on CPU."""
    optimizer.state.clear()
    for key_and_name, tensor in tensors.items():
        if not key_and_name.startswith("optimizer/"):
            continue
        _, key, name = key_and_name.split("/", 2)
        parameter = by_name[name]
        if key == "step":
            optimizer.state[parameter][key] = tensor
            continue
        moment = torch.zeros_like(parameter, requires_grad=False)
        local_part(moment).copy_(tensor)
        optimizer.state[parameter][key] = moment


def _check_names(folder: Path, tensors: Mapping[str, Tensor], by_name: Mapping[str, nn.Parameter]) -> None:
    saved = {key.split("/", 1)[1]: tensor for key, tensor in tensors.items() if key.startswith("model/")}
    for name in sorted(saved.keys() | by_name.keys()):
        ours = local_part(by_name[name]).shape if name in by_name else None
        theirs = saved[name].shape if name in saved else None
        if ours != theirs:
            raise ConfigError(f"{folder} is of another model: {name} is {theirs} there and {ours} here")
