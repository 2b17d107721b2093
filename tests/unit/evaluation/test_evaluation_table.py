"""The table shows every row and family, in the terminal, as Markdown and as plain values."""

import json

from rich.console import Console

from medvista_ray.evaluation.statistics import RowResult
from medvista_ray.evaluation.table import format_markdown, make_table, table_as_dict
from medvista_ray.runs.summary import Accuracy


def accuracy(sampled: float, greedy: float | None = None) -> Accuracy:
    return Accuracy(sampled=sampled, greedy=greedy, low=sampled - 0.03, high=sampled + 0.03, n=240, num_sources=9)


ROWS = {
    "base": RowResult(
        accuracy={"overall": accuracy(0.41), "structure": accuracy(0.86), "zoom": accuracy(0.25, 0.26)},
        valid_answers=1.0,
        valid_tool_calls=None,
        calls_per_episode={"structure": 0.0, "zoom": 0.0},
        failure_classes={"no_call": 12},
    ),
    "rl_tools": RowResult(
        accuracy={"overall": accuracy(0.95), "zoom": accuracy(0.97), "measure": accuracy(0.5)},
        valid_answers=0.99,
        valid_tool_calls=0.98,
        calls_per_episode={"zoom": 1.0, "measure": 2.0},
        failure_classes={},
    ),
}


def test_a_terminal_shows_every_number() -> None:
    console = Console(width=160, no_color=True)
    with console.capture() as captured:
        console.print(make_table(ROWS))
    text = captured.get()
    for part in ("base", "rl_tools", "0.25 (0.26)", "0.22-0.28", "0.97", "measure", "1.50", "do not cover new"):
        assert part in text, part


def test_markdown_has_one_line_per_row() -> None:
    lines = format_markdown(ROWS).splitlines()
    assert lines[0] == "| row | overall | zoom | structure | measure | valid answers | valid calls | calls |"
    assert lines[2].startswith("| `base` | 0.41, 0.38-0.44 | 0.25 (0.26), 0.22-0.28 | 0.86")
    assert lines[3].endswith("| 0.99 | 0.98 | 1.50 |")
    assert {line.count("|") for line in lines[:4]} == {9}
    assert "do not cover new patients" in lines[-1]


def test_plain_values_are_json() -> None:
    plain = json.loads(json.dumps(table_as_dict(ROWS)))
    assert plain["base"]["accuracy"]["zoom"]["greedy"] == 0.26
    assert plain["base"]["valid_tool_calls"] is None
    assert plain["rl_tools"]["calls_per_episode"] == {"zoom": 1.0, "measure": 2.0}
