"""The Typer app that the commands hang themselves on, and the options that several of them share."""

from __future__ import annotations

from typing import Annotated

import typer

from medvista_ray import __version__

app = typer.Typer(
    name="medvista",
    help="Train vision-language models to think with medical images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script")]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit")] = False,
) -> None:
    """Train vision-language models to think with medical images."""
    if version:
        typer.echo(__version__)
        raise typer.Exit
