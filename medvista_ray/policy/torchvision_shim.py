"""Make torchvision importable beside a CPU build of torch. Knows nothing of this package.

The published torchvision wheel is built for CUDA. Beside CPU torch its import fails, because two operator schemas
(`torchvision::nms`, `torchvision::qnms`) are missing; transformers needs torchvision for its Qwen-VL processors.
Declaring the two schemas is enough for everything but those operators themselves. Called by every leaf of ours that
imports transformers, so it also holds in child processes; it imports no torch until torchvision is imported.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_LIBRARIES: list[Any] = []  # a torch.library.Library lives as long as its schemas are needed


class _TorchvisionFinder(importlib.abc.MetaPathFinder):
    """Declares the schemas right before torchvision is first imported, then steps aside."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _declare_missing_operators()
        return None


def _declare_missing_operators() -> None:
    import torch

    if torch.version.cuda is not None or torch.version.hip is not None:
        return
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARIES.append(library)


def install() -> None:
    """Install the finder once; does nothing when torchvision is already imported."""
    if "torchvision" in sys.modules or any(isinstance(finder, _TorchvisionFinder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _TorchvisionFinder())
