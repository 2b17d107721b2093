"""Windows against pydicom's own on real files, percentiles, and MONOCHROME1 the right way round."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array
from test_tools_views import VALUES, call, make_shelf

from medvista_ray.errors import ToolArgumentError
from medvista_ray.images.codec import encode_npy, make_ref
from medvista_ray.images.dicom import read_dicom
from medvista_ray.images.files import read_image_file
from medvista_ray.images.store import MemoryBlobCache
from medvista_ray.images.windowing import PRESETS
from medvista_ray.tools.base import CallKey
from medvista_ray.tools.renderer import ViewRenderer
from medvista_ray.tools.shelf import ImageShelf
from medvista_ray.types.messages import NPY_MIME, Task

WG04 = Path(importlib.util.find_spec("data_store").submodule_search_locations[0]) / "data"
CTS = [WG04 / "693_UNCR.dcm", Path(get_testdata_file("CT_small.dcm"))]


def shelf_of(values, view_size_px=4096, **facts):
    data, blobs = encode_npy(values), MemoryBlobCache()
    blobs.put(data)
    ref = make_ref(data, mime=NPY_MIME, width=values.shape[1], height=values.shape[0], **facts)
    return ImageShelf(
        Task(task_id="t", family="f", question="q", images=(ref,)),
        renderer=ViewRenderer(blobs, view_size_px=view_size_px),
    )


def voi_by_pydicom(path, *, center, width, function):
    """What pydicom's VOI LUT gives, as grey levels 0 to 255 before rounding."""
    dataset = pydicom.dcmread(path)
    hu = apply_modality_lut(pixel_array(dataset), dataset)
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = center, width, function
    shown = np.asarray(apply_voi_lut(hu, dataset), np.float64)
    black, white = (
        float(np.asarray(apply_voi_lut(np.array([value], np.float64), dataset))[0]) for value in (-1e9, 1e9)
    )
    return (shown - black) / (white - black) * 255


@pytest.mark.parametrize("path", CTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("preset", ["soft_tissue", "brain", "lung", "bone", "abdomen"])
def test_equals_the_voi_lut_of_pydicom(path, preset):
    center, width = PRESETS[preset]
    shelf = shelf_of(read_dicom(path).values, modality="CT")
    _, (image,) = call(shelf, "window_level", preset=preset)
    grey = image.pixels[..., 0].astype(float)
    exact = voi_by_pydicom(path, center=center, width=width, function="LINEAR_EXACT")
    assert np.abs(grey - exact).max() <= 0.5 + 1e-3  # equal but for the rounding to grey levels
    default = voi_by_pydicom(path, center=center, width=width, function="LINEAR")
    assert np.abs(grey - default).max() <= 0.5 + 255 / width + 1e-3
    if width >= 512:
        assert np.abs(grey - np.rint(default)).max() <= 1.0


def test_monochrome1_is_the_right_way_round_on_a_real_chest_film():
    """Bone and heart are bright, the lungs and the air beside the body dark, as a film is read."""
    path = WG04 / "RG1_UNCR.dcm"
    raw = pydicom.dcmread(path)
    assert raw.PhotometricInterpretation == "MONOCHROME1"
    file = read_image_file(path)
    values = read_dicom(path).values
    stored = pixel_array(raw).astype(np.float32)
    assert np.array_equal(values, stored.max() + stored.min() - stored)
    shelf = shelf_of(values)
    _, (image,) = call(shelf, "window_level", percentiles=[1, 99])
    grey = image.pixels[..., 0].astype(float)
    height, width = grey.shape
    assert (width, height) == (file.width, file.height) == (1841, 1955)

    def mean_at(x0, y0, x1, y1):
        return grey[int(y0 * height) : int(y1 * height), int(x0 * width) : int(x1 * width)].mean()

    heart, left_lung, right_lung = (
        mean_at(0.5, 0.6, 0.6, 0.7),
        mean_at(0.7, 0.3, 0.8, 0.45),
        mean_at(0.2, 0.3, 0.3, 0.45),
    )
    assert heart > 1.3 * max(left_lung, right_lung)


def test_percentiles_are_those_of_the_part_shown():
    shelf = make_shelf(view_size_px=84)
    output, (image,) = call(shelf, "window_level", percentiles=[5, 95], image=1)
    low, high = np.percentile(VALUES, [5, 95])
    assert output.text == f"center {(low + high) / 2:.6g}, width {high - low:.6g}"
    grey = np.floor(np.clip((VALUES - low) / (high - low), 0, 1) * 255 + 0.5)
    assert np.abs(image.pixels[..., 0] - grey).max() <= 1
    call(shelf, "zoom", bbox=[0, 0, 21, 20], unit="pixels", image=1)
    output, _ = call(shelf, "window_level", percentiles=[0, 100], image=3)
    part = VALUES[:20, :21]
    assert output.text == f"center {(int(part.min()) + int(part.max())) / 2:.6g}, width {int(np.ptp(part)):.6g}"
    assert shelf.context(CallKey()).image(4).record.to_source == shelf.records[3].to_source


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"percentiles": [50, 50]}, "not in order"),
        ({"percentiles": [90, 10]}, "not in order"),
        ({"percentiles": [1, 99], "preset": "bone"}, "either preset"),
    ],
)
def test_percentiles_that_make_no_window(arguments, message):
    with pytest.raises(ToolArgumentError, match=message):
        call(make_shelf(), "window_level", image=1, **arguments)
    flat = shelf_of(np.full((5, 5), 7, np.int16))
    with pytest.raises(ToolArgumentError, match="no window between"):
        call(flat, "window_level", percentiles=[1, 99])
