"""DICOM at the border: pixels in real units and a few harmless facts; nothing that could name a patient."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from fuzz_cases import fuzz
from hypothesis import given
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from medvista_ray.errors import ImageError
from medvista_ray.images.dicom import DicomImage, plane_of, read_dicom
from medvista_ray.images.dicom_fields import HEADER_NAMES

STORED = np.array([[0, 1, 2], [100, 200, 4095]], np.uint16)
CANARIES = {
    "PatientName": "Canary^Quilla",
    "PatientID": "canary-id-5512",
    "PatientBirthDate": "19020304",
    "InstitutionName": "Canary Infirmary",
    "ReferringPhysicianName": "Canary^Doctor",
    "StudyDescription": "canary study",
    "AccessionNumber": "canary-acc",
    "StudyInstanceUID": "1.2.3.666.999",
    "ImageComments": "canary comment",
}


def make_dataset(pixels: np.ndarray = STORED, **elements) -> Dataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = 8 * pixels.itemsize
    dataset.BitsStored = 8 * pixels.itemsize
    dataset.HighBit = 8 * pixels.itemsize - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.Modality = "CT"
    dataset.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def write(folder: Path, dataset: Dataset, name: str = "a.dcm") -> Path:
    path = folder / name
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_the_record_holds_the_allow_list_and_nothing_else():
    names = [field.name for field in dataclasses.fields(DicomImage)]
    assert names == ["values", "modality", "spacing_mm", "plane", "bits_stored", "header"]
    image = read_dicom(Path(get_testdata_file("CT_small.dcm")))
    assert not hasattr(image, "__dict__")
    assert set(image.header) <= set(HEADER_NAMES)


def test_rescaled_values_spacing_and_plane(tmp_path):
    path = write(
        tmp_path,
        make_dataset(
            RescaleSlope=2,
            RescaleIntercept=-1024,
            PixelSpacing=[0.5, 0.25],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            BitsStored=12,
            HighBit=11,
        ),
    )
    image = read_dicom(path)
    assert image.values.dtype == np.float32
    assert np.array_equal(image.values, STORED.astype(np.float32) * 2 - 1024)
    assert (image.modality, image.spacing_mm, image.plane, image.bits_stored) == ("CT", (0.5, 0.25), "axial", 12)


def test_signed_values_stay_signed(tmp_path):
    values = np.array([[-1000, 0], [7, 3000]], np.int16)
    assert np.array_equal(read_dicom(write(tmp_path, make_dataset(values))).values, values)


def test_monochrome1_is_turned_round(tmp_path):
    image = read_dicom(write(tmp_path, make_dataset(PhotometricInterpretation="MONOCHROME1", Modality="CR")))
    assert np.array_equal(image.values, 4095 - STORED.astype(np.float32))


@pytest.mark.parametrize("spacing", [None, [0, 1], [-1, 1], [1, 1e9], [1]])
def test_a_spacing_that_is_none(tmp_path, spacing):
    elements = {} if spacing is None else {"PixelSpacing": spacing}
    assert read_dicom(write(tmp_path, make_dataset(**elements))).spacing_mm is None


@pytest.mark.parametrize(
    ("orientation", "plane"),
    [
        ([1, 0, 0, 0, 1, 0], "axial"),
        ([1, 0, 0, 0, 0, -1], "coronal"),
        ([0, 1, 0, 0, 0, -1], "sagittal"),
        ([-1, 0, 0, 0, 0.98, 0.2], "axial"),
        ([0.7071, 0.7071, 0, 0, 0, -1], None),
        (None, None),
        ([1, 0, 0], None),
    ],
)
def test_planes(orientation, plane):
    assert plane_of(orientation) == plane


def test_one_frame_of_many(tmp_path):
    frames = np.stack([STORED, STORED + 1, STORED * 0])
    dataset = make_dataset(STORED, NumberOfFrames=3, Modality="XA")
    dataset.PixelData = frames.tobytes()
    path = write(tmp_path, dataset)
    assert np.array_equal(read_dicom(path).values, frames[0])
    assert np.array_equal(read_dicom(path, frame=1).values, frames[1])
    with pytest.raises(ImageError, match=r"a\.dcm"):
        read_dicom(path, frame=3)


def test_ybr_comes_out_as_rgb():
    """The sample is a grey echo with a coloured bar; as raw YBR its mean colour would be green and magenta."""
    values = read_dicom(Path(get_testdata_file("examples_ybr_color.dcm"))).values
    assert (values.dtype, values.shape) == (np.uint8, (240, 320, 3))
    spread = np.ptp(values.reshape(-1, 3).mean(axis=0))
    assert spread < 2
    flat = pydicom.dcmread(get_testdata_file("SC_ybr_full_422_uncompressed.dcm"))
    red = read_dicom(Path(get_testdata_file("SC_ybr_full_422_uncompressed.dcm"))).values[5, 50]
    assert flat.PhotometricInterpretation == "YBR_FULL_422"
    assert np.abs(red.astype(int) - (255, 0, 0)).max() <= 2


def test_palette_colours_are_looked_up(tmp_path):
    dataset = make_dataset(np.array([[0, 1], [2, 1]], np.uint8), PhotometricInterpretation="PALETTE COLOR")
    for colour, entries in (("Red", (255, 0, 9)), ("Green", (0, 255, 9)), ("Blue", (0, 0, 9))):
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [3, 0, 16])
        dataset[f"{colour}PaletteColorLookupTableDescriptor"].VR = "US"
        table = np.array([257 * entry for entry in entries], "<u2").tobytes()
        setattr(dataset, f"{colour}PaletteColorLookupTableData", table)
    values = read_dicom(write(tmp_path, dataset)).values
    assert values.tolist() == [[[255, 0, 0], [0, 255, 0]], [[9, 9, 9], [0, 255, 0]]]


def test_deep_colour_is_refused_not_cut(tmp_path):
    deep = np.full((2, 2, 3), 40_000, np.uint16)
    with pytest.raises(ImageError, match="more than 8 bits"):
        read_dicom(write(tmp_path, make_dataset(deep)))
    assert (read_dicom(write(tmp_path, make_dataset(np.full((2, 2, 3), 200, np.uint8)))).values == 200).all()


def test_what_is_no_image_is_one_line(tmp_path):
    (tmp_path / "text.dcm").write_text("not dicom")
    (tmp_path / "empty.dcm").write_bytes(b"")
    dataset = make_dataset()
    del dataset.PixelData
    huge = make_dataset(Rows=60_000, Columns=60_000)
    short = make_dataset()
    short.PixelData = STORED.tobytes()[:-2]
    paths = [
        tmp_path / "text.dcm",
        tmp_path / "empty.dcm",
        tmp_path / "missing.dcm",
        tmp_path,
        write(tmp_path, dataset, "no-pixels.dcm"),
        write(tmp_path, huge, "huge.dcm"),
        write(tmp_path, short, "short.dcm"),
        Path(get_testdata_file("rtplan.dcm")),
    ]
    for path in paths:
        with pytest.raises(ImageError) as caught:
            read_dicom(path)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ImageError, match="cap"):
        read_dicom(tmp_path / "huge.dcm")


def test_identifiers_reach_no_record_log_or_warning(tmp_path, caplog):
    """Valid and invalid values alike: an element outside of the allow-list is not even parsed."""
    caplog.set_level(logging.DEBUG)
    dataset = make_dataset(**CANARIES)
    dataset.add_new(0x00091010, "LO", "canary private")
    dataset[0x0009, 0x0010] = pydicom.DataElement(0x00090010, "LO", "CANARY MAKER")
    dataset.add_new(0x60000010, "US", 2)
    dataset.add_new(0x60000022, "LO", "canary overlay")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
        try:
            dataset.PatientBirthDate = "canary-no-date"
            dataset.PatientAge = "canary-no-age"
            dataset.SliceThickness = None
            good = write(tmp_path, dataset)
            dataset.PixelData = b"12"
            bad = write(tmp_path, dataset, "bad.dcm")
            torn = bytearray(good.read_bytes())
            place = torn.index(b"\x28\x00\x10\x00US\x02\x00")  # the length of Rows, over all that follows
            torn[place + 6 : place + 8] = (61).to_bytes(2, "little")
            (tmp_path / "torn.dcm").write_bytes(torn.replace(b"\x28\x00\x11\x00", b"Canary^Q"[:4]))
        finally:
            pydicom.config.settings.writing_validation_mode = None
        said.clear()
        caplog.clear()
        image = read_dicom(good)
        spoken = []
        for path in (bad, tmp_path / "torn.dcm"):
            with pytest.raises(ImageError) as caught:
                read_dicom(path)
            spoken += [str(caught.value), repr(caught.value.__cause__)]
    spoken += [*(str(warning.message) for warning in said), caplog.text]
    for piece in (repr(image), *spoken):
        assert "canary" not in piece.lower()
        assert not any(value in piece for value in CANARIES.values())


@pytest.mark.filterwarnings("ignore")
@fuzz
@given(changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8), cut=st.floats(0.2, 1))
def test_damaged_files_are_an_image_or_an_image_error(tmp_path, changes, cut):
    data = bytearray(write(tmp_path, make_dataset(RescaleSlope=1, RescaleIntercept=0), "seed.dcm").read_bytes())
    for place, value in changes:
        data[132 + int(place * (len(data) - 133))] = value
    path = tmp_path / "damaged.dcm"
    path.write_bytes(bytes(data[: int(len(data) * cut)]))
    try:
        image = read_dicom(path)
    except ImageError:
        return
    assert np.isfinite(image.values).all()
