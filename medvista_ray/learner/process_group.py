"""Join and leave the process group of the learner's ranks. Knows addresses; not models or batches.

The store is handed in (a shared file, or TCP): whoever starts the ranks knows where they can meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore


@dataclass(frozen=True, slots=True, kw_only=True)
class RankAddress:
    """One rank of a group, and where the ranks meet."""

    rank: int = 0
    world_size: int = 1
    init_method: str = ""  # file:///path or tcp://host:port; empty only for one rank
    timeout_s: float = 300.0  # of one collective: a lost rank must not hang the others for ever

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must be in [0, {self.world_size}), got {self.rank}")
        if self.world_size > 1 and not self.init_method:
            raise ValueError(f"{self.world_size} ranks need an init_method to meet")


def join_group(address: RankAddress, *, device: torch.device) -> None:
    """Start this process's rank: NCCL on a GPU, gloo on CPU. One group for each process."""
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=address.init_method or None,
        store=None if address.init_method else HashStore(),
        rank=address.rank,
        world_size=address.world_size,
        timeout=timedelta(seconds=address.timeout_s),
    )


def leave_group() -> None:
    """Leave the group; nothing happens where none was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def process_group(address: RankAddress, *, device: torch.device) -> Iterator[None]:
    """Join for the length of a block."""
    join_group(address, device=device)
    try:
        yield
    finally:
        leave_group()
