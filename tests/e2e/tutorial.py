"""A tutorial page as a test plays it: its files are written, its commands run, and what they print is compared.

In the order of the page, in one folder. `<!-- file: NAME -->` before a block is its file; `<!-- test: run -->` makes a
block of commands run; the block after `<!-- prints -->` is what they print, where … stands for anything.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from command_line import make_environment

_BLOCK = re.compile(
    r"^<!-- (?P<mark>file: (?P<name>[\w./-]+)|test: run|prints) -->\n```\w+\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def play(page: str, folder: Path, *, extra: dict[str, str] | None = None) -> int:
    """Play a page and return how many blocks were played."""
    printed, blocks = "", list(_BLOCK.finditer(page))
    for block in blocks:
        if block["name"]:
            (folder / block["name"]).parent.mkdir(parents=True, exist_ok=True)
            (folder / block["name"]).write_text(block["text"])
        elif block["mark"] == "prints":
            pattern = ".*".join(re.escape(part.strip("\n")) for part in block["text"].split("…"))
            assert re.fullmatch(pattern, printed.strip("\n"), re.DOTALL), f"wanted {block['text']!r}, got {printed!r}"
        else:
            printed = run(block["text"], folder, extra=extra or {})
    return len(blocks)


def run(commands: str, folder: Path, *, extra: dict[str, str]) -> str:
    """Run commands as a user would type them, with the `medvista` of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env=make_environment({"PATH": path, **extra}),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout}{done.stderr}"
    return done.stdout
