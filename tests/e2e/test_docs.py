"""README and docs say what is so: Python runs as it stands, commands exist with their options, files are there.

A bash block after `<!-- test: run -->` is run; the commands of any other are checked against the command line, the
configuration and the Makefile.
"""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from command_line import MEDVISTA, make_environment

from medvista_ray.config.load import load_config

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
TUTORIALS = ("own_tool.md", "own_env.md")  # played as a whole: `test_docs_tutorials.py`
BLOCK = re.compile(r"^(?P<run><!-- test: run -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
GROUPS = ("data", "tools")  # commands that have commands
INDENTED = re.compile(r"^    ((?:make|medvista|python) .*)$", re.MULTILINE)


def blocks(kind: str, *, run: bool | None = None) -> list:
    """Return the fenced blocks of a language, each with the page and line it stands on."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            if page.name in TUTORIALS and (kind == "python" or match["run"]):
                continue
            if match["kind"] == kind and run in (None, bool(match["run"])):
                line = text.count("\n", 0, match.start("text")) + 1
                found.append(pytest.param(match["text"], id=f"{page.relative_to(ROOT)}:{line}"))
    return found


def commands() -> list:
    """Return every command that a page shows."""
    found = [
        pytest.param(line, id=f"{block.id}:{line}")
        for block in blocks("bash")
        for line in block.values[0].splitlines()
        if line
    ]
    for page in PAGES:
        text = BLOCK.sub("", page.read_text())
        lines = INDENTED.findall(text) + re.findall(r"`((?:make|medvista) [^`]+)`", text)
        found += [pytest.param(line, id=f"{page.relative_to(ROOT)}:{line}") for line in lines]
    return found


@pytest.mark.parametrize("text", blocks("python"))
def test_python_runs_as_it_stands(text: str, tmp_path: Path) -> None:
    (tmp_path / "block.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "block.py"],
        cwd=tmp_path,
        env=make_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", blocks("bash", run=True))
def test_commands_that_are_cheap_run(text: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=ROOT,
        env=make_environment({"PATH": path}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", commands())
def test_every_command_exists(line: str) -> None:
    words = shlex.split(line, comments=True)
    program, *arguments = words
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert set(arguments) <= set(targets)
    elif program == "medvista":
        check_medvista(arguments)
    elif program == "python" and arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1])
    elif program == "python":
        assert (ROOT / arguments[0]).is_file()
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        (package,) = arguments[1:]
        name, _, wanted = package.rstrip("]").partition("[")
        assert name == "medvista-ray"
        assert not wanted or set(wanted.split(",")) <= set(extras)
    else:
        raise AssertionError(f"teach this test to check {program!r}")


def help_of(*command: str) -> str:
    """Return the help of a command."""
    return subprocess.run(
        [MEDVISTA, *command, "--help"], env=make_environment(), capture_output=True, text=True, timeout=60, check=True
    ).stdout


def check_medvista(arguments: list[str]) -> None:
    """Check sub-command, options, config files and `key=value` words."""
    if arguments[0].startswith("-"):
        assert arguments[0] in help_of()
        return
    command, *rest = arguments
    words_of_command = [command, rest.pop(0)] if command in GROUPS and rest else [command]
    text = help_of(*words_of_command)
    for option in (word for word in rest if word.startswith("--")):
        assert option in text, f"medvista {' '.join(words_of_command)} has no {option}"
    files = [ROOT / word for word in rest if word.endswith(".yaml")]
    words = [word for word in rest if "=" in word and word[0] not in "'["]
    load_config([path for path in files if path.parent.name == "configs"], words)


def test_the_configuration_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_configuration", ROOT / "docs" / "make_configuration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == module.render(), "run python docs/make_configuration.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_are_there(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert target.startswith("https://") or (page.parent / target).is_file(), target
    for named in re.findall(r"`((?:examples|configs|docs|tests|medvista_ray)/[\w./-]+\.\w+)`", text):
        assert (ROOT / named).is_file(), named


def test_the_two_commands_stand_at_the_top() -> None:
    top = (ROOT / "README.md").read_text().splitlines()[:8]
    assert [line.split()[:2] for line in top if line.startswith("    make")] == [["make", "demo"], ["make", "test"]]


def test_pictures_are_small_and_made_by_the_script() -> None:
    code = (ROOT / "docs" / "make_images.py").read_text()
    for picture in (ROOT / "docs" / "images").glob("*.*"):  # those in its folders: `test_docs_gym.py`
        assert picture.stat().st_size < 60_000
        assert picture.name in code
