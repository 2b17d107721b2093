"""Turn a data set as published into a folder with `tasks.jsonl`: images by digest, splits without a leak.

Rows and what is known of them wait in a database inside the folder until all are there, so memory does not grow with
their number and a preparation that was killed goes on where it was. `tasks.jsonl` appears last, complete. The same
files and settings give the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import msgspec

from medvista_ray.data.files import read_mask
from medvista_ray.data.folder import TASKS_FILE
from medvista_ray.data.manifest import Split
from medvista_ray.data.prepare_store import Key, PrepareStore
from medvista_ray.data.public.catalog import PUBLIC_SETS
from medvista_ray.data.public.draft import Draft, Half, Loader, LoaderOptions, PublicSet, RawImage, SplitRule
from medvista_ray.data.rows import TaskRow, check_row
from medvista_ray.errors import ConfigError, DataError, ImageError
from medvista_ray.images.codec import decode, digest_of
from medvista_ray.images.metadata import strip_metadata, strip_png
from medvista_ray.types.messages import NPY_MIME, PNG_MIME

ABOUT_FILE = "dataset.json"
STORE_FILE = "prepare.sqlite"
COMMIT_ROWS = 200
_OURS = re.compile(r"[0-9a-f]{64}(\.(png|jpg|npy))?(\.[0-9]+\.part)?")  # what stands under its digest
_SUFFIXES = {PNG_MIME: ".png", "image/jpeg": ".jpg", NPY_MIME: ".npy"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareSettings:
    """How a data set is turned into a folder."""

    split_by: SplitRule | None = None  # None = what suits the data set
    held_out_half: Literal["test", "validation"] = "test"  # of a published split; the other one is left out
    held_out_share: float = 0.2  # of patients or images, where the split is ours
    seed: int = 0  # of that split
    on_leak: Literal["refuse", "drop"] = "refuse"  # drop = leave out the training rows
    with_boxes: bool = False  # slake: grounding tasks too

    def __post_init__(self) -> None:
        if not 0.0 < self.held_out_share < 1.0:
            raise ConfigError(f"--held-out-share must be between 0 and 1, got {self.held_out_share}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a preparation left behind; also the contents of `dataset.json`."""

    name: str
    page: str
    licence: str
    split_by: SplitRule
    num_train: int
    num_held_out: int
    num_images: int  # distinct, by digest
    num_left_out: int  # of a half that is not wanted
    num_clipped: int  # boxes that left their image
    num_empty: int  # boxes and masks that marked nothing
    num_dropped: int  # training rows that shared an image or a patient with a held-out one
    resumed_from: int = 0  # drafts that an earlier, killed preparation had done
    was_finished: bool = False  # by an earlier preparation: nothing was read again


Report = Callable[[int, int | None], None]  # (drafts done, drafts in all)


def prepare(
    name: str,
    source: Path,
    out: Path,
    *,
    settings: PrepareSettings | None = None,
    fresh: bool = False,
    report: Report = lambda done, total: None,
) -> Prepared:
    """Turn the files below `source` into a folder that `data.source` can name.

    Raises:
        DataError: files are missing or wrong, or the splits leak.
        ConfigError: `out` holds something else.
    """
    settings = settings or PrepareSettings()
    known = PUBLIC_SETS.get(name)
    if known is None:
        raise ConfigError(f"prepare: {name!r} is none of {', '.join(PUBLIC_SETS)}")
    if settings.split_by is not None and settings.split_by not in known.split_rules:
        raise ConfigError(f"--split {settings.split_by}: {name} is split by {' or '.join(known.split_rules)}")
    loader = known.make_loader(source, LoaderOptions(with_boxes=settings.with_boxes))
    split_by = settings.split_by or loader.split_rule or known.split_rules[0]
    settings = replace(settings, split_by=split_by)
    fingerprint = _fingerprint(known, loader, source, settings)
    try:
        if fresh:
            _clear(out)
        done = _read_finished(out, fingerprint)
        return done or _run(known, loader, out, settings, fingerprint, report)
    except (OSError, sqlite3.Error) as error:
        raise DataError(f"{name}: --out {out}: {error}; the same command goes on from here") from error


def _run(
    known: PublicSet, loader: Loader, out: Path, settings: PrepareSettings, fingerprint: str, report: Report
) -> Prepared:
    assert settings.split_by is not None, "the caller has filled it in"
    with PrepareStore.open(out, out / STORE_FILE, fingerprint=fingerprint) as store:
        resumed_from = store.num_drafts
        _store_drafts(loader, store, out, settings, report)
        if settings.split_by != "published":
            store.draw_splits(settings.held_out_share)
        dropped = _settle_leaks(store, settings)
        counts = store.count_splits()
        for split in {"train", "held_out"} - counts.keys():
            raise DataError(f"{known.name}: no {split} question is left; `medvista data show {known.name}` has more")
        prepared = Prepared(
            name=known.name,
            page=known.page,
            licence=known.licence,
            split_by=settings.split_by,
            num_train=counts["train"],
            num_held_out=counts["held_out"],
            num_images=store.count_images(),
            num_left_out=store.num_left_out,
            num_clipped=store.num_clipped,
            num_empty=store.num_empty,
            num_dropped=dropped,
            resumed_from=resumed_from,
        )
        about = {**asdict(prepared), "resumed_from": 0, "fingerprint": fingerprint}
        _write_atomically(out / ABOUT_FILE, msgspec.json.format(msgspec.json.encode(about), indent=1))
        _write_tasks(store, out)
    (out / STORE_FILE).unlink()
    return prepared


def _fingerprint(known: PublicSet, loader: Loader, source: Path, settings: PrepareSettings) -> str:
    """Return a digest of all that the result depends on; of public sets the images are taken to be as published."""
    chosen = asdict(replace(settings, on_leak="refuse"))  # decided at the end, over the same rows
    digest = hashlib.sha256(msgspec.json.encode([known.name, chosen]))
    for path in loader.annotations:
        stat = path.stat()
        told = f"{os.path.relpath(path, source)}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        digest.update(told.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _clear(out: Path) -> None:
    """Delete what an earlier preparation left, but for its images: the next one sweeps those that it does not need."""
    if (out / TASKS_FILE).exists() and not (out / ABOUT_FILE).exists():
        raise ConfigError(f"--out {out} holds a {TASKS_FILE} that was not made here: choose another folder")
    for name in (STORE_FILE, TASKS_FILE, ABOUT_FILE):
        (out / name).unlink(missing_ok=True)


def _read_finished(out: Path, fingerprint: str) -> Prepared | None:
    """Return what stands in a folder that is finished; `ConfigError` if it was made in another way."""
    if not (out / TASKS_FILE).is_file():
        return None
    try:
        about = msgspec.json.decode((out / ABOUT_FILE).read_bytes())
        if about.pop("fingerprint") == fingerprint:
            (out / STORE_FILE).unlink(missing_ok=True)
            return replace(msgspec.convert(about, Prepared), was_finished=True)
    except (OSError, msgspec.MsgspecError, KeyError, AttributeError):
        pass  # not ours, or damaged
    raise ConfigError(f"--out {out} holds another data set, or one made in another way: choose another, or --fresh")


def _store_drafts(loader: Loader, store: PrepareStore, out: Path, settings: PrepareSettings, report: Report) -> None:
    total, done = loader.count(), store.num_drafts
    report(done, total)
    for draft in islice(loader.read(), done, None):
        _store_draft(draft, store, out, settings)
        done += 1
        if done % COMMIT_ROWS == 0:
            store.commit()
            report(done, total)
    store.commit()
    report(done, done)


def _store_draft(draft: Draft, store: PrepareStore, out: Path, settings: PrepareSettings) -> None:
    """Make a draft a row, unless it is not wanted, came before, or marks nothing."""
    split = _published_split(draft, settings) if settings.split_by == "published" else None
    if settings.split_by == "published" and split is None:
        store.leave_out()
        return
    if draft.is_repeated and store.holds(str(draft.row.task_id)):
        store.pass_over()
        return
    images = [_read(read, draft.where) for read in draft.images]
    row = _check_marks(draft, images[0], store)
    if row is None:
        store.pass_over()
        return
    row, keys = _store_files(draft, row, images, store, out)
    check_row(row, where=draft.where)
    store.add(row, split=split, lot=_draw_lot(draft, keys, settings), keys=keys, where=draft.where)


def _check_marks(draft: Draft, image: RawImage, store: PrepareStore) -> TaskRow | None:
    """Cut boxes to their image and count those that are changed or empty; None where nothing is left to find."""
    row = draft.row
    if not row.boxes and draft.mask is None:
        return row
    try:
        height, width = decode(image.data, image.mime).shape[:2]
        if draft.mask is not None:
            is_marked = read_mask(draft.mask, label=row.mask_label, size_px=(width, height), may_be_empty=True).any()
            store.num_empty += not is_marked
            return row if is_marked else None
    except (ImageError, OSError) as error:
        raise DataError(f"{draft.where}: {error}") from error
    clipped = [(max(0.0, x0), max(0.0, y0), min(x1, width), min(y1, height)) for x0, y0, x1, y1 in row.boxes]
    boxes = [box for box in clipped if box[0] < box[2] and box[1] < box[3]]
    store.num_empty += len(clipped) - len(boxes)
    store.num_clipped += sum(box != old for box, old in zip(clipped, row.boxes, strict=True) if box in boxes)
    return msgspec.structs.replace(row, boxes=boxes) if boxes else None


def _published_split(draft: Draft, settings: PrepareSettings) -> Split | None:
    if draft.half is None:
        raise DataError(f"{draft.where}: no published split here; use --split patient or image")
    halves: dict[Half, Split] = {"train": "train", settings.held_out_half: "held_out"}
    return halves.get(draft.half)


def _draw_lot(draft: Draft, keys: tuple[Key, ...], settings: PrepareSettings) -> bytes:
    """Draw by patient, or by the first image: the same wherever and however often it comes."""
    by_patient = settings.split_by == "patient" and draft.patient is not None
    drawn_by = draft.patient if by_patient else keys[0].value
    return hashlib.sha256(f"{settings.seed}:{drawn_by}".encode("utf-8", "surrogateescape")).digest()


def _store_files(
    draft: Draft, row: TaskRow, images: list[RawImage], store: PrepareStore, out: Path
) -> tuple[TaskRow, tuple[Key, ...]]:
    """Store the images and the mask of a draft; return its row with their names, and what only one split may have."""
    names = [_store_image(image, out, draft.where) for image in images]
    keys = [Key(kind="image", value=digest_of(image.data)) for image in images]
    patient = None
    if draft.patient is not None:
        patient = store.pseudonym(draft.patient)
        keys.append(Key(kind="patient", value=patient))
    mask = None if draft.mask is None else _store_mask(draft.mask, out, draft.where)
    row = msgspec.structs.replace(
        row,
        images=names,
        mask=mask,
        patient=patient,
        spacing_mm=row.spacing_mm or images[0].spacing_mm,
        modality=row.modality or images[0].modality,
        headers=[dict(image.header) for image in images] if any(image.header for image in images) else [],
    )
    return row, tuple(keys)


def _read(read: Callable[[], RawImage], where: str) -> RawImage:
    """Read an image and take out what is not picture: its text may name a person."""
    image = read()
    try:
        data, mime = strip_metadata(image.data, image.mime)
    except ImageError as error:
        raise DataError(f"{where}: {error}") from error
    return replace(image, data=data, mime=mime)


def _store_image(image: RawImage, out: Path, where: str) -> str:
    """Write an image under its digest if it is new, after decoding it once; return its name below the folder."""
    digest = digest_of(image.data)
    name = f"images/{digest[:2]}/{digest}{_SUFFIXES.get(image.mime, '')}"
    if not (out / name).is_file():
        try:
            decode(image.data, image.mime)
        except ImageError as error:
            raise DataError(f"{where}: {error}") from error
        _write_atomically(out / name, image.data)
    return name


def _store_mask(mask: Path, out: Path, where: str) -> str:
    try:
        data = strip_png(mask.read_bytes())
    except (ImageError, OSError) as error:
        raise DataError(f"{where}: {error}") from error
    digest = digest_of(data)
    name = f"masks/{digest[:2]}/{digest}.png"
    if not (out / name).is_file():
        _write_atomically(out / name, data)
    return name


def _settle_leaks(store: PrepareStore, settings: PrepareSettings) -> int:
    """Drop the training rows that share an image or a patient with a held-out one, or refuse; return how many."""
    leak = store.find_leak()
    if leak is None:
        return 0
    if settings.on_leak == "drop":
        return store.drop_leaks()
    remedy = "--on-leak drop leaves out such training rows"
    raise DataError(
        f"{leak.train} (train) and {leak.held_out} (held_out) share {leak.kind} {leak.value[:12]}; {remedy}"
    )


def _write_tasks(store: PrepareStore, out: Path) -> None:
    partial = out / f"{TASKS_FILE}.part"
    with partial.open("wb") as file:
        for row in store.rows():
            file.write(msgspec.json.encode(row) + b"\n")
    _sweep(store, out)
    partial.rename(out / TASKS_FILE)


def _sweep(store: PrepareStore, out: Path) -> None:
    """Delete images and masks of ours that no row names: dropped rows, another data set, a killed preparation."""
    for row in store.rows():
        store.index_files(name for names in row.files.values() for name in names)
    for top in ("images", "masks"):
        for path in (out / top).glob("??/*"):
            if _OURS.fullmatch(path.name) and not store.names_file(path.relative_to(out).as_posix()):
                path.unlink()
        for folder in (out / top).glob("??"):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _write_atomically(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    partial.write_bytes(data)
    partial.rename(path)
