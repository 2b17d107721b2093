"""The header of a DICOM file: values of the allow-list within their bounds, and not one free text."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import string
import struct
import warnings
from pathlib import Path

import pydicom
import pytest
from fuzz_cases import fuzz_some
from hypothesis import given
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from test_images_dicom import STORED, make_dataset, write

from medvista_ray.errors import ImageError
from medvista_ray.images import dicom_fields
from medvista_ray.images.codestreams import codestream_size
from medvista_ray.images.dicom import read_dicom, read_dicom_facts, read_patient_key
from medvista_ray.images.dicom_fields import HEADER_KEYWORDS, HEADER_NAMES, read_header

WG04 = Path(importlib.util.find_spec("data_store").submodule_search_locations[0]) / "data"
TEXTS = (
    dicom_fields.MODALITIES | dicom_fields.BODY_PARTS | dicom_fields.VIEWS | dicom_fields.PATIENT_POSITIONS
    | dicom_fields.PHOTOMETRIC_INTERPRETATIONS | set(dicom_fields.MAKERS.values())
    | {"yes", "no", "unknown", "R", "L", "U", "B", "SE", "IR", "GR", "EP", "RM", "1D", "2D", "3D"}
)  # fmt: skip


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (
            WG04 / "693_UNCR.dcm",
            {
                "modality": "CT", "patient_position": "HFS", "slice_thickness_mm": 5.0, "tube_voltage_kv": 140.0,
                "tube_current_ma": 170.0, "exposure_time_ms": 2000.0, "pixel_spacing_row_mm": 0.478516, "rows": 512,
                "plane": "axial", "burned_in_annotation": "unknown",
            },
        ),
        (
            Path(get_testdata_file("MR_small.dcm")),
            {
                "modality": "MR", "manufacturer": "Toshiba", "scanning_sequence": "SE", "repetition_time_ms": 4000.0,
                "echo_time_ms": 240.0, "flip_angle_deg": 90.0, "slice_thickness_mm": 0.8, "columns": 64,
            },
        ),
        (
            WG04 / "RG1_UNCR.dcm",
            {
                "modality": "CR", "body_part_examined": "CHEST", "view_position": "PA", "manufacturer": "Philips",
                "photometric_interpretation": "MONOCHROME1", "tube_voltage_kv": 150.0, "rows": 1955, "columns": 1841,
            },
        ),
    ],
    ids=["ct", "mr", "cr"],
)  # fmt: skip
def test_fields_of_real_files(path, expected):
    header = read_dicom_facts(path).header
    assert {name: header.get(name) for name in expected} == expected
    assert set(header) <= set(HEADER_NAMES)


@pytest.mark.filterwarnings("ignore:Expected explicit VR")
def test_no_file_at_hand_has_a_text_that_is_not_ours():
    folder = Path(get_testdata_file("MR_small.dcm")).parent
    count = 0
    for path in (*sorted(WG04.glob("*.dcm")), *sorted(folder.glob("*.dcm"))):
        try:
            facts = read_dicom_facts(path)
        except ImageError:
            continue
        count += 1
        assert facts.modality in dicom_fields.MODALITIES
        for name, value in facts.header.items():
            assert isinstance(value, (int, float)) or value in TEXTS or name == "plane", (path.name, name, value)
    assert count > 120


@pytest.mark.parametrize("keyword", [*HEADER_KEYWORDS, "RescaleSlope", "PixelSpacing", "ImageOrientationPatient"])
@pytest.mark.parametrize("vr", ["of its kind", "LO", "DA"])
def test_a_text_planted_in_any_element_that_is_read_stays_there(tmp_path, caplog, keyword, vr):
    """Warnings are errors here: pydicom's would quote what it cannot parse."""
    path, tag, secret = tmp_path / "a.dcm", Tag(keyword), "CANARY^QUILLAS"
    dataset = make_dataset(RescaleSlope=1, RescaleIntercept=0)
    dataset[tag] = pydicom.DataElement(tag, "LO", secret)
    head = struct.pack("<2H", tag.group, tag.element)
    true_vr = pydicom.datadict.dictionary_VR(keyword) if vr == "of its kind" else vr
    data = write(tmp_path, dataset).read_bytes()
    assert data.count(head + b"LO") == 1
    path.write_bytes(data.replace(head + b"LO", head + true_vr.encode()))
    for read in (read_dicom, read_dicom_facts):
        try:
            said = str(dataclasses.asdict(read(path)))
        except ImageError as error:
            said = f"{error} {error.__cause__}"
        assert "CANARY" not in said
        assert "CANARY" not in caplog.text


@pytest.mark.parametrize(
    ("name", "keyword", "text"),
    [
        ("slice_thickness_mm", "SliceThickness", "19020304"),
        ("slice_thickness_mm", "SliceThickness", "-1"),
        ("slice_thickness_mm", "SliceThickness", "nan"),
        ("slice_thickness_mm", "SliceThickness", "1e999"),
        ("slice_thickness_mm", "SliceThickness", "5 mm"),
        ("tube_voltage_kv", "KVP", "100000"),
        ("echo_train_length", "EchoTrainLength", "12.5"),
        ("number_of_frames", "NumberOfFrames", "1902030405"),
        ("modality", "Modality", "SMITH"),
        ("body_part_examined", "BodyPartExamined", "CHEST OF JOHN"),
        ("manufacturer", "Manufacturer", "General Practice Dr. Smith"),
        ("manufacturer", "Manufacturer", "georgetown hospital"),
    ],
)
def test_values_out_of_bounds_are_left_out(name, keyword, text):
    assert name not in read_header(raw_dataset(keyword, text.encode()))


def test_the_name_of_a_maker_is_ours():
    for text, name in [
        ("SIEMENS HEALTHINEERS 4711", "Siemens"),
        ("GE MEDICAL SYSTEMS", "GE"),
        ("Philips Medical Systems, Smith", "Philips"),
        ("FUJIFILM Corporation", "Fujifilm"),
        ("TOSHIBA_MEC", "Toshiba"),
    ]:
        assert read_header(raw_dataset("Manufacturer", text.encode()))["manufacturer"] == name


@pytest.mark.parametrize(
    ("modality", "said", "flag"),
    [
        ("CT", None, "unknown"),
        ("CT", "YES", "yes"),
        ("CT", "NO", "no"),
        ("US", None, "yes"),
        ("US", "NO", "no"),
        ("SC", "PERHAPS", "yes"),
    ],
)
def test_burned_in_text_is_flagged(tmp_path, modality, said, flag):
    elements = {"Modality": modality, **({} if said is None else {"BurnedInAnnotation": said})}
    path = write(tmp_path, make_dataset(**elements))
    assert read_dicom(path).header["burned_in_annotation"] == flag


def raw_dataset(keyword, value, *, is_little_endian=True):
    tag = Tag(keyword)
    element = RawDataElement(tag, None, len(value), value, 0, True, is_little_endian)
    return Dataset({tag: element})


@fuzz_some
@given(
    keyword=st.sampled_from(HEADER_KEYWORDS),
    value=st.one_of(
        st.binary(max_size=300),
        st.text(string.printable, max_size=40).map(str.encode),
        st.sampled_from(["1", "-1", "1e5", "3D", "AP", "CT", "SIEMENS", "YES", "01", " 5.0 ", "1\\2"]).map(str.encode),
    ),
    is_little_endian=st.booleans(),
)
def test_whatever_an_element_holds_the_header_is_ours(keyword, value, is_little_endian):
    for name, shown in read_header(raw_dataset(keyword, value, is_little_endian=is_little_endian)).items():
        assert name in HEADER_NAMES
        assert shown in TEXTS if isinstance(shown, str) else abs(shown) <= 100_000


def make_region(*, units=(3, 3), delta=(0.025, 0.05)):
    region = Dataset()
    region.PhysicalUnitsXDirection, region.PhysicalUnitsYDirection = units
    region.PhysicalDeltaX, region.PhysicalDeltaY = delta
    return region


@pytest.mark.parametrize(
    ("regions", "spacing"),
    [
        ([make_region()], (0.5, 0.25)),
        ([make_region(), make_region(units=(4, 3), delta=(0.01, 9.0))], (0.5, 0.25)),
        ([make_region(), make_region()], (0.5, 0.25)),
        ([make_region(), make_region(delta=(0.03, 0.05))], None),
        ([make_region(units=(4, 4))], None),
        ([make_region(delta=(-1.0, 0.05))], None),
        ([make_region(delta=(float("nan"), 0.05))], None),
        ([Dataset()], None),
        ([], None),
    ],
)
def test_spacing_of_ultrasound_regions(tmp_path, regions, spacing):
    path = write(tmp_path, make_dataset(Modality="US", SequenceOfUltrasoundRegions=Sequence(regions)))
    assert read_dicom(path).spacing_mm == (spacing and pytest.approx(spacing))


def test_pixel_spacing_comes_before_regions(tmp_path):
    dataset = make_dataset(PixelSpacing=[2, 1], SequenceOfUltrasoundRegions=Sequence([make_region()]))
    assert read_dicom(write(tmp_path, dataset)).spacing_mm == (2.0, 1.0)


def test_deflated_files_are_refused_before_they_are_inflated():
    with pytest.raises(ImageError, match="deflated"):
        read_dicom(Path(get_testdata_file("image_dfl.dcm")))


def test_a_codestream_larger_than_its_header_is_refused(tmp_path):
    path = Path(get_testdata_file("JPEG2000.dcm"))
    assert read_dicom(path).values.shape == (1024, 256)
    torn = bytearray(path.read_bytes())
    place = torn.index(b"\xff\x4f\xff\x51")
    torn[place + 8 : place + 12] = (2**31 - 1).to_bytes(4, "big")
    (tmp_path / "bomb.dcm").write_bytes(torn)
    with pytest.raises(ImageError, match="2147483647 x 1024 pixels are coded"):
        read_dicom(tmp_path / "bomb.dcm")
    with pytest.raises(ImageError, match="cap"):
        read_dicom(write(tmp_path, make_dataset(STORED, SamplesPerPixel=60_000, Rows=8000, Columns=8000)))


def test_sizes_of_codestreams():
    for name in (
        "SC_rgb_jpeg_dcmtk.dcm",
        "JPEG2000.dcm",
        "JPEG-lossy.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "JPGExtended.dcm",
    ):
        dataset = pydicom.dcmread(get_testdata_file(name))
        frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
        assert codestream_size(frame) == (dataset.Columns, dataset.Rows), name
    assert codestream_size(b"") is None
    assert codestream_size(b"\xff\xd8\xff") is None


@fuzz_some
@given(data=st.binary(max_size=60))
def test_any_bytes_have_a_size_or_none(data):
    for start in (b"", b"\xff\xd8", b"\xff\x4f\xff\x51"):
        size = codestream_size(start + data)
        assert size is None or len(size) == 2


OLD_UIDS = (b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.5.1.4.1.1.7\0")  # of the coding and the kind of `make_dataset`


def put_character_set(folder, text):
    dataset = make_dataset(RescaleSlope=1, RescaleIntercept=0)
    dataset.add_new(Tag("SpecificCharacterSet"), "LO", text)
    data = write(folder, dataset).read_bytes()
    assert data.count(b"\x08\x00\x05\x00LO") == 1
    return data.replace(b"\x08\x00\x05\x00LO", b"\x08\x00\x05\x00CS")


def put_character_set_within(folder, text):
    item = Dataset()
    item.add_new(Tag("ImageComments"), "LT", text)
    dataset = make_dataset(SequenceOfUltrasoundRegions=Sequence([item]), Modality="US")
    dataset.add_new(0x00091010, "SQ", Sequence([item]))
    dataset[0x00091010].is_undefined_length = True  # so that it is parsed, whatever it is
    data = write(folder, dataset).read_bytes()
    assert data.count(b"\x20\x00\x00\x40LT") == 2
    return data.replace(b"\x20\x00\x00\x40LT", b"\x08\x00\x05\x00CS")


def put_transfer_syntax(folder, text):
    data = write(folder, make_dataset()).read_bytes()
    assert data.count(OLD_UIDS[0]) == 1
    return data.replace(OLD_UIDS[0], text.encode().ljust(len(OLD_UIDS[0]), b"\0"))


def put_storage_class(folder, text):
    data = write(folder, make_dataset()).read_bytes()
    assert data.count(OLD_UIDS[1]) == 1
    return data.replace(OLD_UIDS[1], text.encode().ljust(len(OLD_UIDS[1]), b"\0"))


def put_patient(folder, text):
    return write(folder, make_dataset(PatientID=text)).read_bytes()


@pytest.mark.parametrize(
    ("put", "is_refused"),
    [
        (put_character_set, False),
        (put_character_set_within, False),
        (put_transfer_syntax, True),
        (put_storage_class, False),
        (put_patient, False),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
@pytest.mark.parametrize("text", ["CANARY^QUILLAS", "ISO_IR 100\\CANARY", "1.2.CANARY"])
@pytest.mark.parametrize("action", ["error", "always"])
def test_a_text_planted_where_pydicom_reads_before_us_stays_there(tmp_path, caplog, put, is_refused, text, action):
    """A file is read or refused in our own words; other warnings and logs go on as before."""
    path = tmp_path / "planted.dcm"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path.write_bytes(put(tmp_path, text))
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="pydicom")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter(action)
        for read in (read_dicom, read_dicom_facts):
            said = []
            try:
                said.append(str(dataclasses.asdict(read(path))))
                assert not is_refused
            except ImageError as error:
                said += [str(error), str(error.__cause__)]
                assert is_refused
                assert "its TransferSyntaxUID is not one that is known" in said[0]
            said += [caplog.text, *(str(warning.message) for warning in warned)]
            assert not any("CANARY" in piece for piece in said), said
        key = "" if put is not put_patient else text.split("\\")[0]
        if not is_refused:
            assert read_patient_key(path) == key
    logging.getLogger("pydicom").warning("of somebody else")
    assert "of somebody else" in caplog.text


def test_a_deflated_file_is_not_inflated_for_its_patient():
    with pytest.raises(ImageError, match="deflated"):
        read_patient_key(Path(get_testdata_file("image_dfl.dcm")))
