"""The codec reads its allow-list of formats and nothing else: whatever the bytes, the only error is an ImageError."""

from __future__ import annotations

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from fuzz_cases import fuzz
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medvista_ray.errors import ImageError
from medvista_ray.images.codec import decode, digest_of, encode_npy, encode_png, make_ref
from medvista_ray.types.messages import NPY_MIME, PNG_MIME

JPEG_MIME = "image/jpeg"
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)
VALUES = RNG.integers(-1000, 3000, (5, 8)).astype(np.int16)


def save(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def save_npy(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that promises pixels and has none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


SEEDS = {
    PNG_MIME: encode_png(PIXELS),
    JPEG_MIME: save(Image.fromarray(PIXELS), "JPEG"),
    NPY_MIME: encode_npy(VALUES),
}


def test_png_gives_back_its_pixels():
    assert np.array_equal(decode(encode_png(PIXELS), PNG_MIME), PIXELS)
    grey = PIXELS[..., 0]
    assert np.array_equal(decode(encode_png(grey), PNG_MIME), np.repeat(grey[..., None], 3, axis=2))


def test_pixels_that_make_no_png():
    for wrong in (PIXELS.astype(np.int32), PIXELS.astype(np.float32), np.zeros(4, np.uint8)):
        with pytest.raises(ImageError, match="uint8 pixels"):
            encode_png(wrong)


@pytest.mark.parametrize(
    "values", [VALUES, VALUES.astype(np.float32) / 7, VALUES.astype(np.int64), np.asfortranarray(VALUES)]
)
def test_npy_gives_back_its_values(values):
    back = decode(encode_npy(values), NPY_MIME)
    assert np.array_equal(back, values)
    assert back.dtype == (np.float32 if values.dtype.kind == "f" else np.int16)


def test_whole_numbers_beyond_int16_are_refused_not_wrapped():
    for edge in (-32769, 32768):
        with pytest.raises(ImageError, match="int16"):
            encode_npy(np.array([[0, edge]]))
    assert decode(encode_npy(np.array([[-32768, 32767]])), NPY_MIME).tolist() == [[-32768, 32767]]


def test_other_formats_are_refused_by_name_and_by_content():
    with pytest.raises(ImageError, match="image/gif"):
        decode(SEEDS[PNG_MIME], "image/gif")
    gif = save(Image.fromarray(PIXELS), "GIF")
    for mime in (PNG_MIME, JPEG_MIME):
        with pytest.raises(ImageError):
            decode(gif, mime)
    with pytest.raises(ImageError):
        decode(SEEDS[PNG_MIME], JPEG_MIME)


def test_the_pixel_cap_is_checked_before_pixels_are_made():
    for mime, data in SEEDS.items():
        count = VALUES.size if mime == NPY_MIME else PIXELS.shape[0] * PIXELS.shape[1]
        decode(data, mime, max_pixels=count)
        with pytest.raises(ImageError, match="cap"):
            decode(data, mime, max_pixels=count - 1)
    for width, height in ((10_000, 10_000), (60_000, 60_000)):  # Pillow warns at the first and raises at the second
        with pytest.raises(ImageError):
            decode(png_of_size(width, height), PNG_MIME)
    header = save_npy(VALUES).replace(b"(5, 8), }      ", b"(50000, 80000)}")
    with pytest.raises(ImageError):
        decode(header, NPY_MIME)


def test_deep_pixels_are_refused_not_clipped():
    image = Image.fromarray((np.arange(12).reshape(3, 4) * 5000).astype(np.uint16))
    with pytest.raises(ImageError, match=r"\.npy"):
        decode(save(image, "PNG"), PNG_MIME)


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize(
    "data",
    [
        save_npy(np.array([[Bomb()]], dtype=object), allow_pickle=True),
        pickle.dumps(Bomb()),
        save_npy(np.zeros((2, 3))),
        save_npy(np.zeros((2, 3), ">i2")),
        save_npy(np.zeros(3, np.int16)),
        save_npy(np.zeros((2, 3, 4), np.float32)),
        save_npy(np.zeros((0, 3), np.float32)),
        save_npy(np.asfortranarray(np.ones((2, 3), np.float32))),
        save_npy(np.array([[0.0, np.nan]], np.float32)),
        save_npy(np.array([[0.0, np.inf]], np.float32)),
        save_npy(np.zeros((1, 1), [("x", "<i2")])),
        save_npy(VALUES)[:-1],
        save_npy(VALUES) + b"x",
        b"",
        b"\x93NUMPY\x01\x00",
        b"\x93NUMPY\x02\x00" + save_npy(VALUES)[8:],
    ],
)
def test_other_npy_arrays_are_refused(data):
    with pytest.raises(ImageError):
        decode(data, NPY_MIME)


def test_an_npy_header_is_never_evaluated():
    header = save_npy(VALUES)
    length = int.from_bytes(header[8:10], "little")
    for text in (b"[" * length, b"(" * length, b"9" * length, b"9, " * (length // 3), b"{'descr': " + b"-" * 80):
        with pytest.raises(ImageError):
            decode(header[:10] + text.ljust(length)[:length] + header[10 + length :], NPY_MIME)


mutations = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6)


@fuzz
@given(mime=st.sampled_from(sorted(SEEDS)), changes=mutations, cut=st.floats(0, 1), tail=st.binary(max_size=8))
def test_damaged_bytes_are_an_image_or_an_image_error(mime, changes, cut, tail):
    data = bytearray(SEEDS[mime])
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    data = bytes(data[: max(1, int(len(data) * (1 if cut > 0.5 else 2 * cut)))]) + tail
    try:
        decoded = decode(data, mime, max_pixels=100_000)
    except ImageError:
        return
    assert decoded.size > 0
    assert decoded.dtype in ((np.int16, np.float32) if mime == NPY_MIME else (np.uint8,))


@fuzz
@given(mime=st.sampled_from([*sorted(SEEDS), "text/html"]), data=st.binary(max_size=200), with_head=st.booleans())
def test_any_bytes_are_an_image_error(mime, data, with_head):
    head = SEEDS.get(mime, b"")[:10] if with_head else b""
    with pytest.raises(ImageError):
        decode(head + data, mime)


def test_a_reference_names_the_bytes():
    data = SEEDS[PNG_MIME]
    ref = make_ref(data, mime=PNG_MIME, width=7, height=9, spacing_mm=(0.5, 0.25), modality="CT")
    assert ref.digest == digest_of(data)
    assert (ref.width, ref.height, ref.spacing_mm, ref.modality) == (7, 9, (0.5, 0.25), "CT")
