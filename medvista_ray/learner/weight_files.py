"""Full weight sets as safetensors files: atomic, digested, the newest two kept. Knows files; not models or engines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from medvista_ray.policy.weights import write_weights
from medvista_ray.types.sampling import WeightUpdate

_NAME = re.compile(r"weights-(\d{8})\.safetensors")


def write_weight_file(state: Mapping[str, torch.Tensor], policy_version: int, folder: Path) -> WeightUpdate:
    """Write one version and return where it is; a file under its final name is always whole.

    The version before it is kept (an engine may still read it); all others go, those of a lost history included.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"weights-{policy_version:08d}.safetensors"
    digest = write_weights(state, path)
    _prune(folder, policy_version)
    return WeightUpdate(policy_version=policy_version, path=str(path), digest=digest)


def weight_file_versions(folder: Path) -> dict[int, Path]:
    """Return the weight files of a folder by version, oldest first."""
    found = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def _prune(folder: Path, newest: int) -> None:
    versions = weight_file_versions(folder)
    before = [version for version in versions if version < newest][-1:]
    for version, path in versions.items():
        if version not in (newest, *before):
            path.unlink()
