"""Which files inside installed packages the demo set is built from, and which split each belongs to.

An entry is one file (an image or a volume), named by package, path and SHA-256; the split is by entry, so no source of
a held-out item is seen in training. Packages are located without importing them. Nothing is downloaded here; what the
embedded set needs fetched stands in `packages.py`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

import msgspec

from medvista_ray.data.packages import locate_fetched
from medvista_ray.errors import DataError, MissingPackageError

Split = Literal["train", "held_out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestEntry:
    """One source file."""

    name: str
    package: str  # distribution name
    version: str  # the version that the digest was taken from
    module: str  # import name of the folder
    file: str  # path inside the module
    sha256: str
    kind: Literal["dicom", "nifti", "image", "labels", "archive"]
    modality: str
    split: Split
    families: tuple[str, ...]
    sets: tuple[str, ...]
    licence: str
    region: tuple[int, int, int, int] | None = None  # x0 y0 x1 y1 pixels to keep, away from burned-in text
    is_fetched: bool = False  # the package is not installed: `medvista data prepare embedded` fetches it

    def locate(self) -> Path:
        """Return the file after checking its digest; says which package to install or to fetch otherwise."""
        path = self._find()
        if hashlib.sha256(path.read_bytes()).hexdigest() != self.sha256:
            raise DataError(
                f"data.source: {self.file} of {self.package} has changed; install {self.package}=={self.version}"
            )
        return path

    def _find(self) -> Path:
        if self.is_fetched:
            return locate_fetched(self.package, f"{self.module}/{self.file}")
        spec = importlib.util.find_spec(self.module)
        if spec is None or not spec.submodule_search_locations:
            raise MissingPackageError(
                f"data.source: {self.name} needs {self.package}=={self.version}: pip install 'medvista-ray[demo]'"
            )
        path = Path(spec.submodule_search_locations[0]) / self.file
        if not path.is_file():
            raise DataError(f"data.source: {self.package} has no {self.file}; install {self.package}=={self.version}")
        return path


@cache
def load_manifest() -> tuple[ManifestEntry, ...]:
    """Read the manifest that ships with the package."""
    document = json.loads(resources.files("medvista_ray.data").joinpath("manifest.json").read_text())
    return tuple(msgspec.convert(entry, ManifestEntry) for entry in document["entries"])


def select_entries(source: str, split: Split, family: str) -> tuple[ManifestEntry, ...]:
    """Return the entries of a data set and split that a family draws from."""
    found = tuple(
        entry for entry in load_manifest() if source in entry.sets and entry.split == split and family in entry.families
    )
    if not found:
        raise DataError(f"data.families: the {source!r} set has no {split} image for family {family!r}")
    return found


def find_entry(name: str) -> ManifestEntry:
    """Return an entry by name."""
    for entry in load_manifest():
        if entry.name == name:
            return entry
    raise DataError(f"the manifest has no entry {name!r}")
