"""Files of a user: every allowed format becomes bytes of a task; all else is refused before pixels are made."""

from __future__ import annotations

import io
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from fuzz_cases import fuzz_some
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file

from medvista_ray.errors import ImageError
from medvista_ray.images.codec import MAX_PIXELS, decode, encode_npy, encode_png
from medvista_ray.images.dicom import read_dicom
from medvista_ray.images.files import read_image_bytes, read_image_file
from medvista_ray.images.windowing import display_scale
from medvista_ray.types.messages import NPY_MIME, PNG_MIME

RNG = np.random.default_rng(1)
PIXELS = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (9, 7)).astype(np.uint16)


def save(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth(height: int = 48, width: int = 32) -> np.ndarray:
    """A picture that JPEG keeps nearly as it is."""
    ramp = np.linspace(0, 255, height * width).reshape(height, width)
    return np.stack([ramp, ramp[::-1], ramp[:, ::-1]], axis=2).astype(np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_give_back_their_pixels(kind):
    file = read_image_bytes(save(Image.fromarray(PIXELS), kind))
    assert (file.mime, file.width, file.height) == (PNG_MIME, 7, 9)
    assert np.array_equal(decode(file.data, file.mime), PIXELS)


def test_png_jpeg_and_npy_keep_their_very_bytes():
    for data in (encode_png(PIXELS), save(Image.fromarray(PIXELS), "JPEG"), encode_npy(DEEP.astype(np.float32))):
        assert read_image_bytes(data).data is data


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_become_stored_values_on_the_display_scale(kind):
    file = read_image_bytes(save(Image.fromarray(DEEP), kind))
    assert (file.mime, file.width, file.height) == (NPY_MIME, 7, 9)
    values = decode(file.data, file.mime)
    assert np.array_equal(values, display_scale(DEEP.astype(np.float32)))
    assert np.array_equal(np.argsort(values, axis=None), np.argsort(DEEP, axis=None))


def test_palette_and_transparency_show_their_colours():
    palette = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), mode="P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 9, 9, 9])
    expected = [[[255, 0, 0], [0, 255, 0]], [[9, 9, 9], [0, 255, 0]]]
    for kind in ("PNG", "BMP", "TIFF"):
        file = read_image_bytes(save(palette, kind))
        assert decode(file.data, file.mime).tolist() == expected
    rgba = Image.fromarray(np.dstack([PIXELS, np.full((9, 7), 100, np.uint8)]))
    assert np.array_equal(decode(save(rgba, "PNG"), PNG_MIME), PIXELS)


def test_cmyk_becomes_rgb():
    picture = smooth()
    pure = Image.fromarray(picture).convert("CMYK")
    for kind in ("JPEG", "TIFF"):
        file = read_image_bytes(save(pure, kind, **({"quality": 100} if kind == "JPEG" else {})))
        assert np.abs(decode(file.data, file.mime).astype(int) - picture).mean() < 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_says_which_way_is_up(kind):
    picture = smooth()
    for orientation, upright in ((3, np.rot90(picture, 2)), (6, np.rot90(picture, -1)), (8, np.rot90(picture))):
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = read_image_bytes(save(Image.fromarray(picture), kind, exif=exif.tobytes()))
        pixels = decode(file.data, file.mime)
        assert pixels.shape == upright.shape == (file.height, file.width, 3)
        assert np.abs(pixels.astype(int) - upright).mean() < 4


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF"])
def test_several_pictures_in_one_file_are_refused(kind):
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    data = save(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match=r"animated|several"):
        read_image_bytes(data)
    if kind == "PNG":
        with pytest.raises(ImageError, match="animated"):
            decode(data, PNG_MIME)


def test_a_multi_frame_dicom_file_shows_its_first_frame_and_says_that_there_are_more():
    path = Path(get_testdata_file("SC_rgb_rle_2frame.dcm"))
    file = read_image_file(path)
    assert file.header["number_of_frames"] == 2
    assert np.array_equal(decode(file.data, file.mime), read_dicom(path, frame=0).values)


def test_dicom_keeps_hounsfield_units_for_ct_alone():
    ct, mr = (Path(get_testdata_file(name)) for name in ("CT_small.dcm", "MR_small.dcm"))
    file = read_image_file(ct)
    assert (file.mime, file.modality, file.spacing_mm) == (NPY_MIME, "CT", (0.661468, 0.661468))
    assert np.array_equal(decode(file.data, NPY_MIME), read_dicom(ct).values)
    file = read_image_file(mr)
    assert np.array_equal(decode(file.data, NPY_MIME), display_scale(read_dicom(mr).values))


def test_content_counts_not_the_name(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encode_png(PIXELS))
    assert read_image_file(tmp_path / "a.jpg").mime == PNG_MIME
    (tmp_path / "plain").write_bytes(Path(get_testdata_file("CT_small.dcm")).read_bytes())
    assert read_image_file(tmp_path / "plain").modality == "CT"


def png_of_size(width: int, height: int) -> bytes:
    """A PNG of one grey, a thousand times smaller than its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"\0" * (height * (width + 1)))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_bomb_is_refused_before_its_pixels_are_made():
    side = 9000
    assert MAX_PIXELS < side**2 < Image.MAX_IMAGE_PIXELS  # within what Pillow itself lets pass
    data = png_of_size(side, side)
    tiff = save(Image.new("1", (side, side)), "TIFF", compression="group4")
    bmp = bytearray(save(Image.new("1", (8, 8)), "BMP"))
    bmp[18:26] = struct.pack("<2i", side, side)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for bomb in (data, tiff, bytes(bmp)):
        assert len(bomb) < 1_000_000
        with pytest.raises(ImageError, match="cap"):
            read_image_bytes(bomb)
    with pytest.raises(ImageError, match="cap"):
        decode(data, PNG_MIME)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60 * 1024  # KiB; one copy has 80 MB


def test_no_pixel_at_all():
    good = encode_png(PIXELS)
    for width, height in ((0, 9), (7, 0), (0, 0)):
        header = struct.pack(">4sII", b"IHDR", width, height) + good[24:29]
        data = good[:12] + header + struct.pack(">I", zlib.crc32(header)) + good[33:]
        with pytest.raises(ImageError):
            read_image_bytes(data)
    for data in (b"", b"BM", b"GIF89a", b"II*\0", b"\x93NUMPY", b"\xff\xd8\xff", b"nothing"):
        with pytest.raises(ImageError):
            read_image_bytes(data)


def test_files_that_are_none(tmp_path):
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "text.dcm").write_text("text")
    for name in ("text.png", "text.dcm", "missing.png", "."):
        with pytest.raises(ImageError) as caught:
            read_image_file(tmp_path / name)
        assert "\n" not in str(caught.value)


SEEDS = [
    encode_png(PIXELS),
    encode_npy(DEEP.astype(np.float32)),
    *(save(Image.fromarray(PIXELS), kind) for kind in ("JPEG", "BMP", "TIFF")),
    *(save(Image.fromarray(DEEP), kind) for kind in ("PNG", "TIFF")),
    save(Image.fromarray(smooth()), "TIFF", compression="tiff_lzw"),
    save(Image.fromarray(PIXELS), "TIFF", compression="jpeg"),
]


@pytest.mark.filterwarnings("ignore")  # Pillow warns of a TIFF that says too little, and goes on
@fuzz_some
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    cut=st.floats(0.1, 1),
    tail=st.binary(max_size=30),
)
def test_damaged_bytes_are_an_image_or_an_image_error(seed, changes, cut, tail):
    data = bytearray(seed)
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    try:
        file = read_image_bytes(bytes(data[: int(len(data) * cut)]) + tail)
    except ImageError:
        return
    assert decode(file.data, file.mime).shape[:2] == (file.height, file.width)


@fuzz_some
@given(data=st.binary(max_size=200), mime=st.sampled_from([PNG_MIME, "image/jpeg", NPY_MIME, "image/gif", ""]))
def test_random_bytes_are_an_image_error(data, mime):
    for start in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\x93NUMPY\x01\x00"):
        with pytest.raises(ImageError):
            decode(start + data, mime)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.webp", save(Image.fromarray(PIXELS), "WEBP")),
        ("a.png.gz", b"\x1f\x8b\x08\0" + bytes(200)),
        ("a.dcm", bytes(200)),
        ("empty", b""),
    ],
)
def test_another_format_is_told_which_are_read(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ImageError, match=f"{name} is in none of the formats that are read: PNG, JPEG, .*DICOM.*NIfTI"):
        read_image_file(path)
    with pytest.raises(ImageError, match=r"no DICOM file meta information \(DICM at byte 128\)$"):
        read_dicom(path)


@pytest.mark.parametrize("name", ["rtplan.dcm", "waveform_ecg.dcm"])
def test_dicom_without_pixels_holds_no_image(name):
    with pytest.raises(ImageError, match=f"{name} holds no image: it has no pixel data"):
        read_image_file(Path(get_testdata_file(name)))
