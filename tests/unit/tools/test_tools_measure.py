"""Measurements against two real calipers, scikit-image's regionprops, and numbers that can be told by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file
from skimage.measure import regionprops
from test_tools_chains import make_place_shelf
from test_tools_views import VALUES, call, make_shelf
from test_tools_window import WG04, shelf_of

from medvista_ray.errors import ToolArgumentError
from medvista_ray.images.codec import encode_png, make_ref
from medvista_ray.images.dicom import read_dicom, read_dicom_facts
from medvista_ray.images.files import read_image_file
from medvista_ray.images.geometry import mask_from_source
from medvista_ray.images.store import MemoryBlobCache
from medvista_ray.tools import regions
from medvista_ray.tools.base import CallKey, Picture
from medvista_ray.tools.renderer import ViewRenderer
from medvista_ray.tools.shelf import ImageShelf
from medvista_ray.types.messages import Task


def text_of(shelf, **arguments):
    return call(shelf, "measure", **arguments)[0].text


def shelf_of_file(data, *, width, height, spacing_mm, view_size_px=512):
    blobs = MemoryBlobCache()
    blobs.put(data)
    ref = make_ref(data, mime="image/png", width=width, height=height, spacing_mm=spacing_mm, modality="US")
    return ImageShelf(
        Task(task_id="t", family="f", question="q", images=(ref,)),
        renderer=ViewRenderer(blobs, view_size_px=view_size_px),
    )


def test_the_caliper_of_an_obstetric_ultrasound():
    """The frame says "Cist Mag 1.06 cm"; the middles of its two crosses are at (460, 291) and (499, 302)."""
    file = read_image_file(WG04 / "OBXXXX1A.dcm")
    shelf = shelf_of_file(file.data, width=file.width, height=file.height, spacing_mm=file.spacing_mm)
    assert text_of(shelf, points=[[460, 291], [499, 302]], unit="pixels") == "10.6 mm"
    pixels = shelf.context(CallKey()).image(0).pixels()
    assert (pixels[290:292, 459:461] == 255).all()  # where the arms of a cross meet
    assert (pixels[301:303, 498:500] == 255).all()
    call(shelf, "zoom", bbox=[440, 270, 520, 320], unit="pixels")
    call(shelf, "flip_rotate", operation="rotate_90", image=1)
    to_source = shelf.records[2].to_source
    ends = [to_source.inverse_point(*point) for point in ((460, 291), (499, 302))]
    assert text_of(shelf, points=ends, unit="pixels", image=2) == "10.6 mm"


def test_the_caliper_of_an_echocardiogram():
    """The frame says "Asc Ao Diam 3.3 cm"; its two crosses are at (629.5, 319.5) and (689.5, 435.5).

    No decoder of this coding is among the dependencies, so the picture is a blank one of its size.
    """
    facts = read_dicom_facts(WG04 / "JPGLosslessP14SV1_1s_1f_8b.dcm")
    blank = encode_png(np.zeros((768, 1024, 3), np.uint8))
    shelf = shelf_of_file(blank, width=1024, height=768, spacing_mm=facts.spacing_mm)
    text = text_of(shelf, points=[[629.5, 319.5], [689.5, 435.5]], unit="pixels")
    assert float(text.removesuffix(" mm")) == pytest.approx(33.0, abs=0.5)  # half of the last digit shown


def test_hounsfield_statistics_of_a_real_ct_and_of_its_views():
    path = WG04 / "693_UNCR.dcm"
    values = read_dicom(path).values
    shelf = shelf_of(values, view_size_px=256, modality="CT", spacing_mm=(0.5, 0.5))
    part = values[100:220, 150:300].astype(np.float64)
    expected = (
        f"mean {part.mean():.1f}, std {part.std():.1f}, min {part.min():.6g}, max {part.max():.6g}, n {part.size} (HU)"
    )
    assert text_of(shelf, kind="intensity", bbox=[150, 100, 300, 220], unit="pixels") == expected
    call(shelf, "zoom", bbox=[150, 100, 300, 220], unit="pixels")
    call(shelf, "flip_rotate", operation="rotate_90", image=1)
    call(shelf, "window_level", preset="bone", image=2)
    call(shelf, "enhance", method="clahe", image=3)
    for image in (1, 2, 3, 4):
        assert text_of(shelf, kind="intensity", bbox=[0, 0, 1000, 1000], image=image) == expected


def test_the_unit_of_intensities_is_that_of_the_file(tmp_path):
    """DICOM that is no CT and 16-bit PNG are put on the display scale; an array is what it is."""
    whole = {"kind": "intensity", "bbox": [0, 0, 1000, 1000]}
    deep = np.arange(0, 60_000, 15, dtype=np.uint16).reshape(50, 80)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.save(tmp_path / "array.npy", deep.astype(np.float32))
    for path, unit in (
        (Path(get_testdata_file("MR_small.dcm")), "display scale"),
        (tmp_path / "deep.png", "display scale"),
        (tmp_path / "array.npy", "stored values"),
        (Path(get_testdata_file("CT_small.dcm")), "HU"),
    ):
        file, blobs = read_image_file(path), MemoryBlobCache()
        blobs.put(file.data)
        ref = make_ref(file.data, mime=file.mime, width=file.width, height=file.height, modality=file.modality)
        task = Task(task_id="t", family="f", question="", images=(ref,), headers={ref.digest: file.header})
        shelf = ImageShelf(task, renderer=ViewRenderer(blobs, view_size_px=64))
        text = text_of(shelf, **whole)
        assert text.endswith(f" ({unit})"), path
        if unit == "display scale":
            mean = float(text.split()[1].rstrip(","))
            assert -160 < mean < 240, text


def test_grey_levels_of_an_eight_bit_image():
    shelf = make_place_shelf()
    text = text_of(shelf, kind="intensity", bbox=[10, 20, 12, 21], unit="pixels")
    assert text == "mean 56.2, std 0.5, min 55.6667, max 56.6667, n 2 (grey levels 0 to 255)"


def add_mask(shelf, mask, *, parent):
    """Put a picture on the shelf that marks an object, as a segmenting tool does."""
    record = shelf.records[parent]
    here = mask_from_source(mask, record.to_source, width=record.ref.width, height=record.ref.height)
    shelf.add([Picture(pixels=np.zeros((*here.shape, 3), np.uint8), parent=parent, mask=here)])
    return len(shelf.records) - 1


def test_the_mask_of_an_image_is_a_region():
    shelf = make_shelf(view_size_px=84)
    mask = np.zeros(VALUES.shape, np.bool_)
    mask[10:30, 20:60] = True
    mask[15:20, 30:40] = False
    index = add_mask(shelf, mask, parent=1)
    inside = VALUES[mask]
    text = text_of(shelf, kind="intensity", mask_of=index)
    assert text.startswith(f"mean {inside.mean():.1f}, std {inside.std():.1f}, ")
    assert text.endswith(f"n {mask.sum()} (HU)")
    assert text_of(shelf, kind="intensity", mask_of=index, image=1) == text
    assert text_of(shelf, kind="area", mask_of=index) == f"{mask.sum() * 0.125:.1f} mm2"
    with pytest.raises(ToolArgumentError, match="not from the source"):
        text_of(shelf, kind="intensity", mask_of=index, image=0)
    with pytest.raises(ToolArgumentError, match="shows no mask"):
        text_of(shelf, kind="intensity", mask_of=1)
    empty = add_mask(shelf, np.zeros_like(mask), parent=1)
    with pytest.raises(ToolArgumentError, match="no pixel"):
        text_of(shelf, kind="shape", mask_of=empty)


@given(
    seed=st.integers(0, 10_000), spacing=st.sampled_from([(1.0, 1.0), (0.4, 0.4), (0.5, 0.25)]), fill=st.floats(0.05, 1)
)
@settings(max_examples=60, deadline=None)
def test_shape_equals_regionprops(seed, spacing, fill):
    rng = np.random.default_rng(seed)
    mask = rng.random((rng.integers(1, 20), rng.integers(1, 20))) < fill
    mask[0, 0] = True
    (expected,) = regionprops(mask.astype(np.uint8), spacing=spacing)
    shape = regions.compute_shape(mask, spacing)
    assert shape.area_mm2 == pytest.approx(expected.area)
    assert shape.major_axis_mm == pytest.approx(expected.axis_major_length, abs=1e-6)
    assert shape.minor_axis_mm == pytest.approx(expected.axis_minor_length, abs=1e-6)
    if spacing[0] == spacing[1]:
        assert shape.perimeter_mm == pytest.approx(expected.perimeter)
    else:
        assert shape.perimeter_mm is None


def test_the_shape_of_a_disc():
    rows, columns = np.mgrid[:80, :80]
    disc = np.hypot(rows - 40, columns - 40) <= 30
    shelf = shelf_of(np.zeros((80, 80), np.int16), spacing_mm=(0.5, 0.5))
    text = text_of(shelf, kind="shape", mask_of=add_mask(shelf, disc, parent=0))
    numbers = [float(word) for word in text.replace(",", "").split() if word[0].isdigit()]
    assert numbers == pytest.approx([math.pi * 15**2, 30, 30, 2 * math.pi * 15], rel=0.05)


def test_areas_and_angles_by_hand():
    shelf = make_shelf()  # rows of 0.5 mm, columns of 0.25 mm
    square = [[8, 4], [8, 24], [48, 24], [48, 4]]
    assert text_of(shelf, kind="area", points=square, unit="pixels", image=1) == "100.0 mm2"
    assert text_of(shelf, kind="area", bbox=[8, 4, 48, 24], unit="pixels", image=1) == "100.0 mm2"
    assert text_of(shelf, kind="length", points=[*square, square[0]], unit="pixels", image=1) == "40.0 mm"
    corner = [[48, 4], [8, 4], [28, 14]]
    assert text_of(shelf, kind="angle", points=corner, unit="pixels", image=1) == "45.0 degrees"
    plain = text_of(shelf, kind="angle", points=corner, unit="pixels", image=0)
    assert plain == "26.6 degrees if pixels are square: their spacing is not known"
    straight = [[0, 0], [10, 0], [20, 0]]
    assert text_of(shelf, kind="angle", points=straight, unit="pixels", image=1) == "180.0 degrees"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "length needs points"),
        ({"kind": "area"}, "one of points, bbox and mask_of"),
        ({"kind": "area", "points": [[0, 0], [1, 1]]}, "three points"),
        ({"kind": "angle", "points": [[0, 0], [1, 1]]}, "three points"),
        ({"kind": "angle", "points": [[1, 1], [1, 1], [2, 2]]}, "same"),
        ({"kind": "angle", "bbox": [0, 0, 9, 9]}, "angle needs points"),
        ({"kind": "shape", "points": [[0, 0], [1, 1]]}, "of bbox or mask_of"),
        ({"kind": "intensity", "points": [[0, 0], [1, 1]]}, "of bbox or mask_of"),
        ({"kind": "intensity", "bbox": [0, 0, 9, 9], "mask_of": 1}, "one of points, bbox and mask_of"),
        ({"kind": "intensity", "bbox": [9, 9, 9, 10]}, "empty"),
        ({"kind": "intensity", "bbox": [0, 0, 1, 1]}, "no pixel"),
        ({"kind": "area", "bbox": [0, 0, 9, 9], "image": 0}, "spacing of image 0 is not known: no area"),
        ({"kind": "length", "points": [[0, 0], [1, 1]], "image": 0}, "spacing of image 0 is not known: no length"),
    ],
)
def test_what_cannot_be_measured(arguments, message):
    with pytest.raises(ToolArgumentError, match=message):
        text_of(make_shelf(), **{"image": 1, **arguments})


def test_the_spacing_of_ultrasound_regions():
    """Of the two regions of the first file, one is a trace over time: it has no say."""
    two = pydicom.dcmread(get_testdata_file("examples_palette.dcm"), stop_before_pixels=True)
    assert len(two.SequenceOfUltrasoundRegions) == 2
    delta = two.SequenceOfUltrasoundRegions[0].PhysicalDeltaX
    assert read_dicom_facts(WG04 / "OBXXXX1A.dcm").spacing_mm == pytest.approx((10 * delta, 10 * delta))
    assert read_dicom_facts(WG04 / "US1_UNCR.dcm").spacing_mm is None
