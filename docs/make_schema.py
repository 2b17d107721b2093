"""Write docs/tasks.schema.json, the JSON Schema of a line of tasks.jsonl, from the struct that reads it.

python docs/make_schema.py
"""

import json
from pathlib import Path

from medvista_ray.data.rows import make_schema


def render() -> str:
    """Return the file."""
    return json.dumps(make_schema(), ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "tasks.schema.json").write_text(render(), encoding="utf-8")
