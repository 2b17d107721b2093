"""What every benchmark prints and writes: a table for people, JSON for scripts. It measures; it asserts nothing."""

from __future__ import annotations

import argparse
import json
import operator
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

SCHEMA = 1
_OPS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le, "<": operator.lt}
_PACKAGES = ("medvista-ray", "numpy", "pillow", "gymnasium", "scikit-image", "onnxruntime", "torch", "ray")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One measured figure, with its bar where it has one."""

    metric: str
    value: float
    unit: str
    bar: float | None = None
    op: str | None = None  # >=, <=, <; None for a figure that is only reported

    @property
    def holds(self) -> bool | None:
        """Return whether the bar is met; None without a bar."""
        if self.op is None or self.bar is None:
            return None
        return _OPS[self.op](self.value, self.bar)


def parse_arguments(description: str) -> argparse.Namespace:
    """Read --json PATH, --quick and --seed."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def report(results: Sequence[Result], *, title: str, seed: int, path: Path | None) -> None:
    """Print a table and write the JSON that `--json` asked for."""
    table = Table("metric", "value", "unit", "bar", "holds", title=title)
    for row in results:
        bar = "" if row.op is None else f"{row.op} {row.bar:g}"
        table.add_row(row.metric, f"{row.value:.4g}", row.unit, bar, {True: "yes", False: "NO", None: ""}[row.holds])
    Console(width=110).print(table)
    if path is not None:
        document = {
            "schema": SCHEMA,
            "results": [{**asdict(row), "holds": row.holds} for row in results],
            "machine": {"cpus": os.cpu_count(), "system": platform.system(), "machine": platform.machine()},
            "versions": {"python": platform.python_version(), **_versions()},
            "seed": seed,
        }
        path.write_text(json.dumps(document, indent=2) + "\n")


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
