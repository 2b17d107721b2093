"""Make the ordinary torchvision wheel importable next to a CPU build of torch.

That wheel is built for CUDA: beside a CPU torch its import stops at two operator schemas that do not exist. Declaring
them is enough for what image processors use (pure Python over torch). Owns one import hook; loads torch only when
somebody imports torchvision.
"""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_MISSING_OPERATORS = ("nms", "qnms")
_libraries: list[Any] = []  # an operator lives as long as the library that declares it


class _TorchvisionFinder(importlib.abc.MetaPathFinder):
    """Declare the missing operators right before the first import of torchvision, then step aside."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            _declare_operators()
        return None


def _declare_operators() -> None:
    import torch

    if torch.version.cuda is not None or _libraries:
        return
    make_library: Any = torch.library.Library  # untyped in torch
    library = make_library("torchvision", "DEF")
    for operator in _MISSING_OPERATORS:
        library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)


def install() -> None:
    """Install the import hook once; every module that imports transformers calls this first."""
    if "torchvision" in sys.modules or any(isinstance(finder, _TorchvisionFinder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _TorchvisionFinder())
