"""Run the patch embedding of the vision tower as one matrix product. Owns that replacement and nothing else.

A patch is exactly as large as the kernel of the stock Conv3d, so the convolution is a linear layer; as one it runs and
differentiates several times faster on a CPU. The weight keeps its name and its shape.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class _LinearPatches:
    """Goes before the stock class in the method resolution order."""

    proj: nn.Conv3d

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        weight = self.proj.weight
        return nn.functional.linear(hidden_states.to(weight.dtype), weight.flatten(1), self.proj.bias)


def use_linear_patches(model: Any) -> None:
    """Replace the forward of a Qwen-VL model's patch embedding, in place."""
    embedding = model.model.visual.patch_embed
    stock = type(embedding)
    embedding.__class__ = type(f"Linear{stock.__name__}", (_LinearPatches, stock), {})
