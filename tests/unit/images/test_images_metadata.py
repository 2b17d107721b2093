"""Texts in images: gone from the bytes, the picture the same."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from medvista_ray.errors import ImageError
from medvista_ray.images.codec import decode
from medvista_ray.images.metadata import strip_metadata, strip_png
from medvista_ray.types.messages import NPY_MIME, PNG_MIME

JPEG_MIME = "image/jpeg"
PLANTED = b"DOE^JOHN"
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)


def save(mode, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def make_exif(orientation=None):
    exif = Image.Exif()
    exif[0x010E] = PLANTED.decode()  # ImageDescription
    if orientation is not None:
        exif[0x0112] = orientation
    return exif


def make_texts():
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Patient", PLANTED.decode())
    texts.add_itxt("Comment", PLANTED.decode())
    texts.add(b"prVt", PLANTED)
    return texts


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA"])
def test_a_png_loses_its_texts_and_keeps_its_pixels(mode):
    data = save(mode, "PNG", pnginfo=make_texts(), exif=make_exif(), icc_profile=PLANTED) + PLANTED
    assert data.count(PLANTED) >= 4
    stripped, mime = strip_metadata(data, PNG_MIME)
    assert (mime, PLANTED in stripped) == (PNG_MIME, False)
    assert np.array_equal(decode(stripped, mime), decode(data, PNG_MIME))
    assert strip_metadata(stripped, mime) == (stripped, mime)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_loses_its_texts_and_keeps_its_coded_picture(mode, options):
    data = save(mode, "JPEG", exif=make_exif(), comment=PLANTED, icc_profile=PLANTED, xmp=PLANTED, **options)
    middle = b"\xff\xe0\x00\x10" + b"JFXX\0" + PLANTED + b"\0"
    data = data[:2] + middle + data[2:] + PLANTED
    assert data.count(PLANTED) >= 5
    stripped, mime = strip_metadata(data, JPEG_MIME)
    assert (mime, PLANTED in stripped) == (JPEG_MIME, False)
    assert len(stripped) < len(data)
    assert np.array_equal(decode(stripped, mime), decode(data, JPEG_MIME))
    assert strip_metadata(stripped, mime) == (stripped, mime)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_picture_that_exif_turns_is_turned_and_stays_so(kind, orientation):
    data = save("RGB", kind, exif=make_exif(orientation))
    wanted = decode(data, f"image/{kind.lower()}")
    stripped, mime = strip_metadata(data, f"image/{kind.lower()}")
    assert (mime, PLANTED in stripped) == (PNG_MIME, False)
    assert np.array_equal(decode(stripped, mime), wanted)


def test_the_values_of_a_mask_are_not_turned():
    labels = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).convert("P")
    buffer = io.BytesIO()
    labels.save(buffer, "PNG", exif=make_exif(6), pnginfo=make_texts())
    stripped = strip_png(buffer.getvalue())
    assert PLANTED not in stripped
    assert np.array_equal(np.array(Image.open(io.BytesIO(stripped))), np.array(labels))


@pytest.mark.parametrize(("kind", "mime"), [("PNG", PNG_MIME), ("JPEG", JPEG_MIME)])
def test_every_cut_off_picture_is_an_error_or_a_picture_without_text(kind, mime):
    data = save("RGB", kind, exif=make_exif())
    for end in range(0, len(data) - 2, 7):
        try:
            stripped, told = strip_metadata(data[:end], mime)
            decode(stripped, told)
        except ImageError:
            continue
        assert PLANTED not in stripped
    with pytest.raises(ImageError, match=f"not a readable {mime}"):
        strip_metadata(b"text", mime)


def test_an_animation_stays_refused_and_other_types_stay_as_they_are():
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="animated"):
        strip_metadata(buffer.getvalue(), PNG_MIME)
    assert strip_metadata(b"values", NPY_MIME) == (b"values", NPY_MIME)
