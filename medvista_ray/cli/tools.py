"""`medvista tools`: the tools with their schemas, one of them run on a file, and what a tool needs made once."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medvista_ray.cli.app import AsJson, app
from medvista_ray.errors import ConfigError, DataError, ImageError, MissingPackageError, ToolError

if TYPE_CHECKING:
    from medvista_ray.tools.shelf import ImageShelf
    from medvista_ray.types.messages import Task
    from medvista_ray.types.tool_calls import ToolFailure

tools = typer.Typer(help="List the tools, try one on a file, prepare what one needs.\n\nExample: medvista tools --json")
app.add_typer(tools, name="tools")

_VIEW_SIZE_PX = 1024


@tools.callback(invoke_without_command=True)
def without_command(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List the tools, try one on a file, prepare what one needs.

    Example: medvista tools --json
    """
    if context.invoked_subcommand is None:
        list_tools(as_json=as_json)


@tools.command("list")
def list_tools(*, as_json: AsJson = False) -> None:
    """List the tools with the JSON schemas of their arguments.

    Example: medvista tools list --json
    """
    from medvista_ray.tools.registry import BUILTIN_TOOLS, VARIANTS, load_tool

    targets = {**BUILTIN_TOOLS, **VARIANTS}
    known = {name: load_tool(name) for name in targets}
    if as_json:
        described = {
            name: {
                "name": name,
                "description": tool.description,
                "cost": tool.cost.value,
                "target": targets[name],
                "parameters": tool.parameters,
                **({"variant_of": tool.name} if name in VARIANTS else {}),
            }
            for name, tool in known.items()
        }
        typer.echo(json.dumps(described, indent=2, default=dict))
        return
    for name, tool in known.items():
        if name in VARIANTS:
            typer.echo(
                f"{name} ({tool.cost.value}): a variant of {tool.name}, called by that name. {type(tool).__doc__}"
            )
            continue
        typer.echo(f"{name} ({tool.cost.value}): {tool.description}")
        typer.echo(f"  {json.dumps(tool.parameters, default=dict)}")
    typer.echo("Next: medvista tools try NAME --image FILE --args JSON; or your own: env.tools=[pkg.module:Class]")


@tools.command("try")
def try_tool(
    name: Annotated[str, typer.Argument(help="of a tool, or pkg.module:Class")],
    *,
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="PNG, JPEG, TIFF, BMP, .npy, DICOM or NIfTI; may be repeated")
    ] = None,
    arguments: Annotated[str, typer.Option("--args", help="Arguments as a JSON object")] = "{}",
    out: Annotated[Path, typer.Option("--out", help="Where the image that it gives is written, a .png")] = Path(
        "result.png"
    ),
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds that the call may take, above 0")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Run one tool on files, print its text and write its image.

    Example: medvista tools try zoom --image scan.png --args '{"bbox": [250, 250, 750, 750]}' --out part.png
    """
    from medvista_ray.tools.base import CallKey
    from medvista_ray.tools.registry import load_tool
    from medvista_ray.tools.runner import make_tool_runner
    from medvista_ray.types.tool_calls import ToolCall

    values = _parse_arguments(arguments)
    _check_options(out, timeout_s)
    called = _resolve(name)
    shelf = _open_shelf(image or ())
    runner = make_tool_runner([called], timeout_s=timeout_s, num_workers=1)
    try:
        call = ToolCall(name=load_tool(called).name, arguments=values)
        outcome = runner.run(call, shelf=shelf, key=CallKey(trajectory="try"))
    finally:
        runner.close()
    if outcome.failure is not None:
        raise _error_of(outcome.failure)(f"tools try {name}: {outcome.text}")
    written = _write_images([shelf.load(ref.digest) for ref in outcome.images], out)
    if as_json:
        typer.echo(json.dumps({"text": outcome.text, "images": [str(path) for path in written]}, ensure_ascii=False))
        return
    if outcome.text:
        typer.echo(outcome.text)
    for path in written:
        typer.echo(f"wrote {path}")


@tools.command()
def prepare(name: Annotated[str, typer.Argument(help="of a tool; `segment` is the only one that needs it")]) -> None:
    """Fetch and convert the weights of a tool, once; without them it falls back, and says so.

    Example: medvista tools prepare segment
    """
    from medvista_ray.recipes.convert_litemedsam import prepare_segment

    if name != "segment":
        raise ConfigError(f"tools prepare: {name!r} needs no preparing; only segment does")
    prepare_segment(typer.echo)


def _resolve(name: str) -> str:
    from medvista_ray.tools.registry import BUILTIN_TOOLS, VARIANTS

    known = (*BUILTIN_TOOLS, *VARIANTS)
    if name not in known and ":" not in name:
        raise ConfigError(f"tools try: no tool {name!r}; there are {', '.join(known)}, or pkg.module:Class")
    return name


def _parse_arguments(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--args is no JSON: {error}; write for example '{{\"image\": 0}}'") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--args must be a JSON object, got {type(values).__name__}")
    return values


def _check_options(out: Path, timeout_s: float) -> None:
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out {out}: what is written is a PNG; name it .png")
    if not 0 < timeout_s < math.inf:
        raise ConfigError(f"--timeout {timeout_s:g}: a number of seconds above 0 is needed")


def _open_shelf(paths: Sequence[Path]) -> ImageShelf:
    from medvista_ray.images.store import MemoryBlobCache
    from medvista_ray.tools.renderer import ViewRenderer
    from medvista_ray.tools.shelf import ImageShelf

    blobs = MemoryBlobCache()
    return ImageShelf(_read_task(paths, blobs.put), renderer=ViewRenderer(blobs, view_size_px=_VIEW_SIZE_PX))


def _read_task(paths: Sequence[Path], put: Any) -> Task:
    from medvista_ray.data.files import is_volume, read_volume
    from medvista_ray.images.codec import make_ref
    from medvista_ray.images.files import read_image_file
    from medvista_ray.types.messages import Task

    images, volumes, headers = [], [], {}
    for path in paths:
        if path == Path():
            raise DataError("--image: an empty name, or this folder; name a file")
        try:
            if is_volume(path.name):
                data, volume = read_volume(path)
                volumes.append(volume)
            else:
                file = read_image_file(path)
                data = file.data
                images.append(
                    make_ref(
                        data,
                        mime=file.mime,
                        width=file.width,
                        height=file.height,
                        spacing_mm=file.spacing_mm,
                        modality=file.modality,
                    )
                )
                headers[images[-1].digest] = file.header
                num_frames = file.header.get("number_of_frames", 1)
                if num_frames != 1:
                    typer.echo(f"--image {path}: frame 0 of {num_frames} is shown", err=True)
        except (ImageError, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise DataError(f"--image {path}: {why}") from error
        put(data)
    return Task(
        task_id="try",
        family="try",
        question="",
        images=tuple(images),
        volumes=tuple(volumes),
        headers=headers,
    )


def _write_images(images: Sequence[bytes], out: Path) -> list[Path]:
    """Write PNGs: the first one under the name that was asked for, others with a number behind it."""
    written = []
    for number, data in enumerate(images):
        path = out if number == 0 else out.with_stem(f"{out.stem}-{number}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError as error:
            raise ConfigError(f"--out {path}: {error.strerror}") from error
        written.append(path)
    return written


def _error_of(failure: ToolFailure) -> type[ConfigError | ToolError]:
    """Return what ends the command: wrong use (2) for what the caller can put right, else a failure (1)."""
    from medvista_ray.types.tool_calls import ToolFailure

    if failure is ToolFailure.NOT_INSTALLED:
        return MissingPackageError
    return ConfigError if failure in (ToolFailure.BAD_SCHEMA, ToolFailure.BAD_ARGUMENT) else ToolError
