"""What enhanced multi-frame files say frame by frame: rescale, spacing, plane."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from test_images_dicom import make_dataset, write

from medvista_ray.errors import ImageError
from medvista_ray.images.codec import decode
from medvista_ray.images.dicom import read_dicom, read_dicom_facts
from medvista_ray.images.files import read_image_file

AXIAL, CORONAL = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1]
FRAMES = np.array([[[1064, 1024]], [[1064, 0]]], np.uint16)


def make_group(*, rescale=None, spacing=None, orientation=None):
    group = Dataset()
    if rescale is not None:
        inner = Dataset()
        inner.RescaleSlope, inner.RescaleIntercept = rescale
        inner.RescaleType = "HU"
        group.PixelValueTransformationSequence = Sequence([inner])
    if spacing is not None:
        inner = Dataset()
        inner.PixelSpacing = spacing
        group.PixelMeasuresSequence = Sequence([inner])
    if orientation is not None:
        inner = Dataset()
        inner.ImageOrientationPatient = orientation
        group.PlaneOrientationSequence = Sequence([inner])
    return group


def write_enhanced(folder, *, shared=None, per_frame=None, is_undefined_length=False, **elements):
    dataset = make_dataset(FRAMES[0], NumberOfFrames=2, **elements)
    dataset.PixelData = FRAMES.tobytes()
    for keyword, groups in (
        ("SharedFunctionalGroupsSequence", shared and [shared]),
        ("PerFrameFunctionalGroupsSequence", per_frame),
    ):
        if groups is not None:
            setattr(dataset, keyword, Sequence(groups))
            dataset[keyword].is_undefined_length = is_undefined_length
    return write(folder, dataset)


@pytest.mark.parametrize("is_undefined_length", [False, True])
def test_what_holds_for_every_frame(tmp_path, is_undefined_length):
    group = make_group(rescale=(2, -1024), spacing=[0.5, 0.25], orientation=AXIAL)
    path = write_enhanced(tmp_path, shared=group, is_undefined_length=is_undefined_length)
    for frame in (0, 1):
        image = read_dicom(path, frame=frame)
        assert np.array_equal(image.values, FRAMES[frame] * 2.0 - 1024)
        assert (image.spacing_mm, image.plane) == ((0.5, 0.25), "axial")
    assert read_dicom_facts(path).header["pixel_spacing_column_mm"] == 0.25
    file = read_image_file(path)
    assert decode(file.data, file.mime).tolist() == [[1104.0, 1024.0]]
    assert file.spacing_mm == (0.5, 0.25)


def test_what_holds_for_one_frame(tmp_path):
    groups = [
        make_group(rescale=(1, -1024), spacing=[0.5, 0.5], orientation=AXIAL),
        make_group(rescale=(1, -1000), spacing=[2, 1], orientation=CORONAL),
    ]
    path = write_enhanced(tmp_path, per_frame=groups)
    first, second = (read_dicom(path, frame=frame) for frame in (0, 1))
    assert (first.values.tolist(), first.spacing_mm, first.plane) == ([[40.0, 0.0]], (0.5, 0.5), "axial")
    assert (second.values.tolist(), second.spacing_mm, second.plane) == ([[64.0, -1000.0]], (2.0, 1.0), "coronal")
    assert read_dicom_facts(path, frame=1).plane == "coronal"
    with pytest.raises(ImageError):
        read_dicom(path, frame=2)


def test_the_top_level_holds_where_no_group_says_more(tmp_path):
    path = write_enhanced(
        tmp_path, shared=make_group(spacing=[2, 1]), RescaleSlope=1, RescaleIntercept=-24, PixelSpacing=[9, 9]
    )
    image = read_dicom(path)
    assert (image.values.tolist(), image.spacing_mm) == ([[1040.0, 1000.0]], (2.0, 1.0))


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({}, "without a rescale"),
        ({"shared": make_group(spacing=[1, 1])}, "without a rescale"),
        ({"per_frame": [make_group(rescale=(1, -1024))]}, "without a rescale"),  # none for the second frame
        ({"shared": make_group(rescale=(1, None))}, "no slope and intercept"),
    ],
)
def test_a_ct_of_frames_is_not_read_without_its_unit(tmp_path, elements, message):
    path = write_enhanced(tmp_path, **elements)
    with pytest.raises(ImageError, match=message):
        read_dicom(path, frame=1)
    assert read_dicom_facts(path).modality == "CT"


def test_other_modalities_are_read_as_they_are_stored(tmp_path):
    assert np.array_equal(read_dicom(write_enhanced(tmp_path, Modality="XA")).values, FRAMES[0])


def test_real_enhanced_files():
    ct = read_dicom(Path(get_testdata_file("eCT_Supplemental.dcm")))
    assert (ct.modality, ct.plane) == ("CT", "axial")
    assert ct.spacing_mm == pytest.approx((0.388672, 0.388672))
    assert ct.values.min() < -900
