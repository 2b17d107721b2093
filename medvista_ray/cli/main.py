"""The entry point. Runs a command and turns what it raises into one line and an exit code.

Exit codes: 0 done, 1 failed, 2 wrong use (one line: key, value, remedy), 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import typer

from medvista_ray.cli import data, envs, runs, tools  # noqa: F401  -- importing a module of commands registers them
from medvista_ray.cli.app import app
from medvista_ray.errors import ConfigError, MedVistaError, StoppedError

_INTERRUPTED = 130
_RESUMABLE = (("demo",), ("sft",), ("data", "prepare"))  # the same command goes on
_USAGE_ERROR: Any = typer.BadParameter.__base__  # of click, which typer brings under a name of its own


def main() -> None:
    """Run a command and turn what it raises into an exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # One OpenMP thread a process unless it asks for more: pools that each take every core starve each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.append(os.getcwd())  # for `env.target=my_module:MyEnv`: a console script does not look there by itself
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    raise SystemExit(_run(sys.argv[1:]))


def _run(arguments: Sequence[str]) -> int:
    try:
        code = app(list(arguments), standalone_mode=False)
        if code == _INTERRUPTED:  # how typer passes on a KeyboardInterrupt
            return _fail(f"interrupted; {_how_to_go_on(arguments)}", _INTERRUPTED)
        return int(code) if isinstance(code, int) else 0
    except ConfigError as error:
        return _fail(str(error), 2)
    except StoppedError as error:
        return _fail(str(error), _INTERRUPTED)
    except MedVistaError as error:
        return _fail(f"{type(error).__name__}: {error}", 1)
    except typer.Abort:
        return _fail("interrupted", _INTERRUPTED)
    except _USAGE_ERROR as error:
        return _fail(error.format_message(), 2)


def _how_to_go_on(arguments: Sequence[str]) -> str:
    if arguments[:1] == ["train"]:
        return "go on with: medvista train --resume RUN_DIRECTORY"
    if tuple(arguments[:1]) not in _RESUMABLE and tuple(arguments[:2]) not in _RESUMABLE:
        return "nothing was kept"
    return "the same command goes on from here" + (", without --fresh" if "--fresh" in arguments else "")


def _fail(text: str, code: int) -> int:
    typer.echo(f"medvista: {' '.join(text.split())}", err=True)  # one line, whatever a library wrote
    return code
