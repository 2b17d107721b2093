"""Write docs/configuration.md from the dataclasses of the configuration: keys, defaults, and the comment beside each.

python docs/make_configuration.py
"""

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any, get_type_hints

from medvista_ray.config import schema

HEAD = """# Configuration

A run is described by one `RunConfig`. YAML files are merged from left to right, then `key=value` words of the command
line; every key is written `section.field`, and a word may leave the section out where only one field has that name
(`group_size=4`). An unknown key, a wrong type or a value out of bounds ends the command with one line that says which
key, which value and which bound, before anything is started. `medvista check-config FILE` prints every resolved value;
a run writes the same into `config.yaml` of its directory.

This page is made by `python docs/make_configuration.py` from `medvista_ray/config/schema.py`, where each default lives.
"""


def comments_of(section: type) -> dict[str, str]:
    """Return the comment beside each field."""
    found = re.findall(r"^    (\w+): [^#\n]*(?:#\s*(.*))?$", inspect.getsource(section), flags=re.MULTILINE)
    return dict(found)


def show(value: Any) -> str:
    """Write a default as it would stand in YAML."""
    if isinstance(value, tuple):
        return f"[{', '.join(show(item) for item in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "''" if value == "" else str(value)


def describe(section: type, prefix: str) -> list[str]:
    """Return the table of one section and of those inside it."""
    hints, comments = get_type_hints(section), comments_of(section)
    rows, inner = ["| key | default | |", "|---|---|---|"], []
    for field in dataclasses.fields(section):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            inner += ["", f"## {field.name}", "", (kind.__doc__ or "").strip(), "", *describe(kind, f"{field.name}.")]
            continue
        choices = [str(choice) for choice in getattr(kind, "__args__", ()) if isinstance(choice, str)]
        note = (comments[field.name] or " | ".join(choices)).replace(" | ", ", ")
        rows.append(f"| `{prefix}{field.name}` | `{show(field.default)}` | {note} |")
    return rows + inner


def render() -> str:
    """Return the page."""
    return "\n".join([HEAD, "## The run", "", *describe(schema.RunConfig, "")]) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "configuration.md").write_text(render())
