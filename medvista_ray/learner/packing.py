"""Microbatches of whole sequences under a token budget. Pure numbers; knows lengths, not tensors.

Rows of similar length are padded to the longest of their microbatch. Variable-length packing (many sequences in a row)
would save the last few per cent of padding; it needs a kernel that CPU does not have, multimodal position ids for every
sequence inside a row, and sums in another order than the engine's, and so costs parity.
"""

from __future__ import annotations

from collections.abc import Sequence


def plan_microbatches(lengths: Sequence[int], *, max_tokens: int) -> list[tuple[int, ...]]:
    """Group sequence indices so that rows x longest <= `max_tokens`; a longer sequence gets a microbatch of its own.

    Longest first, equal lengths in the order given, so the plan is the same in every run.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be >= 1, got {max_tokens}")
    longest_first = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    plan: list[tuple[int, ...]] = []
    rows: list[int] = []
    for index in longest_first:
        if rows and (len(rows) + 1) * lengths[rows[0]] > max_tokens:
            plan.append(tuple(rows))
            rows = []
        rows.append(index)
    if rows:
        plan.append(tuple(rows))
    return plan


def pad_plan(plan: Sequence[tuple[int, ...]], num_microbatches: int) -> list[tuple[int, ...]]:
    """Append empty microbatches: every rank runs as many forward passes as the one with the most."""
    if num_microbatches < len(plan):
        raise ValueError(f"{len(plan)} microbatches do not fit into {num_microbatches}")
    return [*plan, *([()] * (num_microbatches - len(plan)))]


def split_plan(plan: Sequence[tuple[int, ...]], num_microbatches: int) -> list[tuple[int, ...]]:
    """Halve the largest microbatch until there are at least `num_microbatches`, or one sequence in each."""
    parts = list(plan)
    while len(parts) < num_microbatches:
        largest = max(range(len(parts)), key=lambda index: (len(parts[index]), -index))
        rows = parts[largest]
        if len(rows) < 2:
            break
        parts[largest : largest + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return parts


def minibatch_indices(num_samples: int, *, minibatches: int, minibatch_index: int) -> range:
    """Return which samples of a shard one optimizer minibatch trains: every `minibatches`-th."""
    return range(minibatch_index, num_samples, minibatches)


def padding_share(lengths: Sequence[int], plan: Sequence[tuple[int, ...]]) -> float:
    """Return the share of padded tokens that carry nothing, in [0, 1)."""
    padded = sum(len(rows) * max(lengths[index] for index in rows) for rows in plan if rows)
    return 1.0 - sum(lengths[index] for rows in plan for index in rows) / padded if padded else 0.0
