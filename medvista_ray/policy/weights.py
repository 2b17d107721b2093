"""Full weight sets as safetensors files, under the model's own tensor names: write, verify, load, and sum up.

Learner and engines agree through this file. Knows tensors and files; not versions, engines or who asks.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medvista_ray.errors import WeightsRefusedError


def named_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return every tensor of a model by name, tied ones once (under the name that comes first); they share memory."""
    weights: dict[str, torch.Tensor] = dict(model.named_parameters())
    persistent = model.state_dict(keep_vars=True)
    weights.update({name: buffer for name, buffer in model.named_buffers() if name in persistent})
    return weights


def write_weights(weights: Mapping[str, torch.Tensor], path: Path) -> str:
    """Write one safetensors file, atomically, and return its SHA-256 in hex."""
    from safetensors.torch import save_file

    host = {name: weights[name].detach().to("cpu").contiguous() for name in sorted(weights)}
    partial = path.with_name(path.name + ".part")
    save_file(host, partial, metadata={"format": "pt"})
    digest = file_digest(partial)
    os.replace(partial, path)
    return digest


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_weights(path: Path, *, digest: str, expected: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Read a file into host memory; `WeightsRefusedError` names what differs from `expected`.

    Args:
        path: a safetensors file.
        digest: the SHA-256 that it must have, hex.
        expected: names, shapes and dtypes that the model needs; values are not read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsRefusedError(f"{path.name} cannot be read: {error.strerror}") from error
    if (found := hashlib.sha256(data).hexdigest()) != digest:
        raise WeightsRefusedError(f"{path.name} has digest {found}, announced was {digest}")
    try:
        weights: dict[str, torch.Tensor] = load(data)
    except SafetensorError as error:
        raise WeightsRefusedError(f"{path.name} is not a safetensors file: {error}") from error
    check_weights(weights, expected)
    return weights


def check_weights(weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Raise `WeightsRefusedError`, naming the tensor, unless names, shapes, dtypes and finiteness are right."""
    if missing := sorted(expected.keys() - weights.keys()):
        raise WeightsRefusedError(f"{len(missing)} tensors are missing, the first is {missing[0]!r}")
    if unknown := sorted(weights.keys() - expected.keys()):
        raise WeightsRefusedError(f"{len(unknown)} tensors are unknown to the model, the first is {unknown[0]!r}")
    for name, tensor in sorted(weights.items()):
        wanted = expected[name]
        if tensor.shape != wanted.shape:
            raise WeightsRefusedError(f"{name!r} has shape {tuple(tensor.shape)}, the model has {tuple(wanted.shape)}")
        if tensor.dtype != wanted.dtype:
            raise WeightsRefusedError(f"{name!r} has dtype {tensor.dtype}, the model has {wanted.dtype}")
        if not bool(torch.isfinite(tensor).all()):
            raise WeightsRefusedError(f"{name!r} holds values that are not finite")


@torch.no_grad()
def load_weights(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy checked weights into a model, in place."""
    for name, tensor in named_weights(model).items():
        tensor.copy_(weights[name])


def weights_checksum(weights: Mapping[str, torch.Tensor]) -> str:
    """Return a SHA-256 over names, dtypes, shapes and values: equal for equal weights, wherever they are."""
    summed = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().to("cpu").contiguous()
        summed.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        summed.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return summed.hexdigest()
