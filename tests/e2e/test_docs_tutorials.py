"""The tutorials run as they stand: files, commands and what they print, in the order of the page."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from tutorial import play

ROOT = Path(__file__).parents[2]
PIP = f"""#!/bin/sh
# `pip install` of a tutorial: into a folder of its own, so that the environment under test stays as it is
exec {sys.executable} -m pip --quiet --disable-pip-version-check "$@" --no-deps --target site
"""


@pytest.mark.parametrize("name", ["own_tool", "own_env"])
def test_a_tutorial_runs_as_it_stands(name: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    shim = tmp_path / "bin" / "pip"
    shim.parent.mkdir()
    shim.write_text(PIP)
    shim.chmod(0o755)
    path = os.pathsep.join((str(shim.parent), str(Path(sys.executable).parent), os.environ["PATH"]))
    page = (ROOT / "docs" / f"{name}.md").read_text()
    assert play(page, tmp_path, extra={"PATH": path, "PYTHONPATH": "site"}) == page.count("<!-- ")


def test_another_output_fails(tmp_path: Path) -> None:
    page = "<!-- test: run -->\n```bash\necho one\n```\n\n<!-- prints -->\n```text\ntwo\n```\n"
    with pytest.raises(AssertionError, match="two"):
        play(page, tmp_path)


def test_a_command_that_fails_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        play("<!-- test: run -->\n```bash\nfalse\ntrue\n```\n", tmp_path)
