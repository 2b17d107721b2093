"""Print the figures of finished benchmarks that fall short of their bar.

python benchmarks/shortfalls.py runs/bench/*.json
"""

import json
import sys
from pathlib import Path


def main() -> None:
    """Read the files that the benchmarks wrote; exit 0 whatever they say, for they measure and do not assert."""
    rows = [(path, row) for path in map(Path, sys.argv[1:]) for row in json.loads(path.read_text())["results"]]
    short = [(path, row) for path, row in rows if row["holds"] is False]
    for path, row in short:
        print(
            f"{path.stem}: {row['metric']} is {row['value']:.4g} {row['unit']}, the bar is {row['op']} {row['bar']:g}"
        )
    print(f"{len(rows) - len(short)} of {len(rows)} figures hold or are only reported")


if __name__ == "__main__":
    main()
