"""Slices of volumes: voxels where the affine of the file says they are, and letters that tell the truth."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import nibabel
import numpy as np
import pytest
from test_tools_views import call

from medvista_ray.errors import ToolArgumentError, ToolError
from medvista_ray.images.codec import digest_of
from medvista_ray.images.store import MemoryBlobCache
from medvista_ray.images.volumes import EDGES, decode_volume, encode_volume
from medvista_ray.tools.base import CallKey
from medvista_ray.tools.renderer import ViewRenderer
from medvista_ray.tools.shelf import ImageShelf
from medvista_ray.types.messages import Task, VolumeRef

SHAPE, SPACING = (24, 20, 16), (1.0, 2.0, 3.0)
X, Y, Z = np.meshgrid(*(np.arange(side) for side in SHAPE), indexing="ij")
VALUES = (X + 32 * Y + 1024 * Z).astype(np.int16)
DIRECTIONS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


def make_volume_shelf(values=VALUES, spacing=SPACING, view_size_px=256):
    data, blobs = encode_volume(values), MemoryBlobCache()
    blobs.put(data)
    volume = VolumeRef(digest=digest_of(data), shape=values.shape, spacing_mm=spacing, modality="MR")
    task = Task(task_id="t", family="f", question="q", images=(), volumes=(volume,))
    return ImageShelf(task, renderer=ViewRenderer(blobs, view_size_px=view_size_px))


def shown_values(shelf):
    return shelf.context(CallKey()).images[-1].source_values()


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_a_slice_is_laid_down_as_a_film(plane):
    shelf = make_volume_shelf()
    output, (image,) = call(shelf, "get_slice", plane=plane, index=5)
    values = shown_values(shelf)
    for row, column in ((0, 0), (3, 7), (values.shape[0] - 1, 0), (0, values.shape[1] - 1)):
        x, y, z = {
            "axial": (SHAPE[0] - 1 - column, SHAPE[1] - 1 - row, 5),
            "coronal": (SHAPE[0] - 1 - column, 5, SHAPE[2] - 1 - row),
            "sagittal": (5, SHAPE[1] - 1 - column, SHAPE[2] - 1 - row),
        }[plane]
        assert values[row, column] == VALUES[x, y, z]
    spacing = {"axial": (2.0, 1.0), "coronal": (3.0, 1.0), "sagittal": (3.0, 2.0)}[plane]
    assert shelf.records[-1].spacing_mm == image.ref.spacing_mm == spacing
    count = SHAPE[{"axial": 2, "coronal": 1, "sagittal": 0}[plane]]
    assert output.text.startswith(f"{plane} 5 of 0 to {count - 1}; edges: left ")


def test_the_first_view_is_the_middle_axial_slice_and_walking_starts_anywhere():
    shelf = make_volume_shelf()
    assert np.array_equal(shown_values(shelf), VALUES[::-1, ::-1, 8].T)
    call(shelf, "get_slice", plane="coronal", index=3)
    call(shelf, "zoom", bbox=[0, 0, 500, 500], image=1)
    call(shelf, "get_slice", plane="axial", index=8, image=2)
    assert shelf.records[3].source == shelf.records[0].source
    call(shelf, "get_slice", plane="axial", position=0, image=3)
    assert shelf.records[4].place.index == 0
    call(shelf, "get_slice", plane="axial", position=1000)
    assert shelf.records[5].place.index == 15


def test_a_projection_is_the_maximum_and_says_what_it_joins():
    shelf = make_volume_shelf()
    output, _ = call(shelf, "get_slice", plane="axial", index=8, thickness=5)
    assert output.text.startswith("maximum of axial 6 to 10 of 0 to 15;")
    assert np.array_equal(shown_values(shelf), VALUES[::-1, ::-1, 6:11].max(axis=2).T)
    output, _ = call(shelf, "get_slice", plane="axial", index=0, thickness=5)
    assert output.text.startswith("maximum of axial 0 to 2 of")
    output, _ = call(shelf, "get_slice", plane="sagittal", index=23, thickness=10**6)
    assert np.array_equal(shown_values(shelf), VALUES[:, ::-1, ::-1].max(axis=0).T)


def test_lengths_and_windows_of_a_slice():
    shelf = make_volume_shelf()
    call(shelf, "get_slice", plane="coronal", index=0)
    call(shelf, "zoom", bbox=[0, 0, 500, 500], image=1)
    output, _ = call(shelf, "measure", points=[[0, 0], [0, 1000]], image=2)
    assert output.text == "24.0 mm"  # half of 16 slices of 3 mm
    _, (image,) = call(shelf, "window_level", percentiles=[0, 100], image=1)
    assert (image.pixels.min(), image.pixels.max()) == (0, 255)


def test_what_is_no_slice():
    shelf = make_volume_shelf()
    for arguments, message in [
        ({"plane": "axial"}, "either index or position"),
        ({"plane": "axial", "index": 1, "position": 2}, "either index or position"),
        ({"plane": "axial", "index": 16}, "axial slices are 0 to 15"),
        ({"plane": "axial", "index": 1, "image": 4}, "no image 4"),
    ]:
        with pytest.raises(ToolArgumentError, match=message):
            call(shelf, "get_slice", **arguments)
    broken = VALUES.astype(np.float32)
    broken[0, 0, 3] = np.nan
    with pytest.raises(ToolError, match="not a finite number"):
        raise_as_tool(make_volume_shelf(broken))


def raise_as_tool(shelf):
    from medvista_ray.tools.execution import execute
    from medvista_ray.tools.registry import load_tool

    execution = execute(load_tool("get_slice"), {"plane": "axial", "index": 3}, shelf.context(CallKey()))
    raise ToolError(execution.error)


# --- a real volume
@pytest.fixture(scope="module")
def icbm():
    """The file as it is, and the same through canonical order and our bytes."""
    folder = Path(importlib.util.find_spec("nilearn").submodule_search_locations[0])
    image = nibabel.load(folder / "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")
    raw = np.asarray(image.dataobj)
    canonical = nibabel.as_closest_canonical(image)
    values = np.rint(np.asarray(canonical.dataobj, np.float32)).astype(np.int16)
    spacing = tuple(float(side) for side in canonical.header.get_zooms()[:3])
    return raw, image.affine, decode_volume(encode_volume(values)), spacing


def place_in_mm(affine, voxel):
    return affine[:3, :3] @ voxel + affine[:3, 3]


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_known_voxels_of_icbm152(icbm, plane):
    """From millimetres of the file's own affine to a pixel of the film, without the canonical order in between."""
    raw, affine, values, spacing = icbm
    shelf = make_volume_shelf(values, spacing)
    to_voxel = np.linalg.inv(affine)
    first = place_in_mm(affine, [0, 0, 0])
    last = place_in_mm(affine, np.array(raw.shape) - 1)
    low, high = np.minimum(first, last), np.maximum(first, last)
    along = {"sagittal": 0, "coronal": 1, "axial": 2}[plane]
    target = np.array([-31.0, 22.0, 11.0])  # left, anterior, superior of the anterior commissure
    index = round((target[along] - low[along]) / spacing[along])
    call(shelf, "get_slice", plane=plane, index=index)
    film = shown_values(shelf)
    left, _, top, _ = EDGES[plane]
    for offset in ((0, 0, 0), (40, 3, -7), (-9, -50, 30), (17, 9, 41)):
        place = target + np.array(offset) * (np.arange(3) != along)
        voxel = np.rint(to_voxel[:3, :3] @ place + to_voxel[:3, 3]).astype(int)
        column, row = (steps_from(letter, place, low, high, spacing) for letter in (left, top))
        assert film[row, column] == round(float(raw[tuple(voxel)])), (plane, offset)
        assert raw[tuple(voxel)] > 0
    assert len({int(value) for value in film.ravel()}) > 100


def steps_from(letter, place, low, high, spacing):
    """Count the pixels from the edge of a letter to a place in millimetres (x to the right, y anterior, z superior)."""
    axis, sign = DIRECTIONS[letter]
    edge = high[axis] if sign > 0 else low[axis]
    return round(abs(place[axis] - edge) / spacing[axis])


def test_the_letters_say_where_the_brain_is_not_symmetric(icbm):
    """Seen on the template: the crown lies at S, the brain stem at I; the stem and the cerebellum hang below at P."""
    _, _, values, spacing = icbm
    shelf = make_volume_shelf(values, spacing)
    output, _ = call(shelf, "get_slice", plane="sagittal", position=500)
    assert output.text.endswith("edges: left A, right P, top S, bottom I")
    filled = shown_values(shelf) > 20
    assert filled[:10].sum() < filled[-10:].sum()  # the crown is narrow, the volume is cut below
    tissue = filled.any(axis=1).nonzero()[0]
    ends = filled[tissue[:35]], filled[tissue[-35:]]  # of the crown and of the stem, whichever lies where
    lowest = min(ends, key=lambda end: int(end.any(axis=0).sum()))
    middle = filled.shape[1] // 2
    assert 2 * lowest[:, :middle].sum() < lowest[:, middle:].sum()
