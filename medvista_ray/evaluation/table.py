"""The table of a run: one line per row (`base` … `rl_tools`), for a terminal, for Markdown, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import msgspec
from rich import box
from rich.table import Table

from medvista_ray.evaluation.statistics import RowResult
from medvista_ray.runs.summary import INTERVAL_NOTE, OVERALL, Accuracy

_ORDER = (OVERALL, "zoom", "window", "structure", "measure")
CAPTION = f"Sampled at temperature 1 (greedy), below: 95% interval. {INTERVAL_NOTE[0].upper()}{INTERVAL_NOTE[1:]}."


def make_table(rows: Mapping[str, RowResult]) -> Table:
    """Build the table for a terminal; `rich` prints it, plain where there are no colours."""
    families = _families(rows)
    table = Table(title="Held-out accuracy", caption=CAPTION, box=box.SIMPLE_HEAD, collapse_padding=True)
    table.add_column("row", no_wrap=True)
    for name in (*families, "valid\nanswers", "valid\ncalls", "calls"):
        table.add_column(name, justify="right")
    for row, result in rows.items():
        cells = [_cell(result.accuracy.get(family), separator="\n") for family in families]
        table.add_row(row, *cells, *_tail(result), style="bold" if row == "rl_tools" else None)
    return table


def format_markdown(rows: Mapping[str, RowResult]) -> str:
    """Write the table as Markdown, one line per row."""
    families = _families(rows)
    header = ["row", *families, "valid answers", "valid calls", "calls"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for row, result in rows.items():
        cells = [_cell(result.accuracy.get(family), separator=", ") for family in families]
        lines.append([f"`{row}`", *cells, *_tail(result)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{CAPTION.replace('below', 'then')}\n"


def table_as_dict(rows: Mapping[str, RowResult]) -> dict[str, dict[str, Any]]:
    """Return the table as plain JSON values, rows by name."""
    return {
        row: {
            **asdict(result),
            "accuracy": {family: msgspec.to_builtins(accuracy) for family, accuracy in result.accuracy.items()},
        }
        for row, result in rows.items()
    }


def _families(rows: Mapping[str, RowResult]) -> Sequence[str]:
    found = {family for result in rows.values() for family in result.accuracy}
    return [*(family for family in _ORDER if family in found), *sorted(found - set(_ORDER))]


def _cell(accuracy: Accuracy | None, *, separator: str) -> str:
    if accuracy is None:
        return "-"
    greedy = "" if accuracy.greedy is None else f" ({accuracy.greedy:.2f})"
    return f"{accuracy.sampled:.2f}{greedy}{separator}{accuracy.low:.2f}-{accuracy.high:.2f}"


def _tail(result: RowResult) -> list[str]:
    calls = result.calls_per_episode
    mean_calls = sum(calls.values()) / len(calls) if calls else 0.0
    valid_calls = "-" if result.valid_tool_calls is None else f"{result.valid_tool_calls:.2f}"
    return [f"{result.valid_answers:.2f}", valid_calls, f"{mean_calls:.2f}"]
