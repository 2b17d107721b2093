"""Volumes as bytes, and the arithmetic of their slices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvista_ray.errors import ImageError
from medvista_ray.images.codec import encode_npy
from medvista_ray.images.volumes import cut_slice, decode_volume, encode_volume, num_slices, projected_slices

VALUES = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
SPACING = (1.0, 2.0, 3.0)


def test_there_and_back_without_a_copy():
    for values, dtype in ((VALUES, np.int16), (VALUES.astype(np.int64), np.int16), (VALUES / 7, np.float32)):
        data = encode_volume(values)
        back = decode_volume(data)
        assert back.dtype == dtype
        assert np.array_equal(back, values.astype(dtype))
        assert not back.flags.writeable
        assert np.shares_memory(back, np.frombuffer(data, np.uint8))


def test_what_is_no_volume():
    for values in (VALUES[0], np.zeros((0, 1, 1), np.int16)):
        with pytest.raises(ImageError, match="three axes"):
            encode_volume(values)
    with pytest.raises(ImageError, match="int16"):
        encode_volume(VALUES.astype(np.int32) + 40_000)
    for data in (b"", encode_npy(VALUES[0]), encode_volume(VALUES)[:-1], encode_volume(VALUES) + b"x"):
        with pytest.raises(ImageError):
            decode_volume(data)
    with pytest.raises(ImageError, match="cap"):
        decode_volume(encode_volume(VALUES), max_voxels=VALUES.size - 1)


def test_the_corner_voxel_of_every_plane():
    """Right, anterior, superior: the last voxel of every axis lies at the top left where the film shows that axis."""
    assert VALUES[-1, -1, -1] == 23
    for plane, last in (("axial", 3), ("coronal", 2), ("sagittal", 1)):
        assert num_slices(VALUES.shape, plane) == last + 1
        film = cut_slice(VALUES, SPACING, plane=plane, index=last)
        assert film.values[0, 0] == 23
        assert film.values.flags.c_contiguous
        for index in (-1, last + 1):
            with pytest.raises(ImageError, match=f"{plane} slices are 0 to {last}"):
                cut_slice(VALUES, SPACING, plane=plane, index=index)


@given(count=st.integers(1, 50), index=st.integers(0, 49), num_projected=st.integers(1, 70))
def test_a_projection_is_centred_on_its_index(count, index, num_projected):
    index = min(index, count - 1)
    joined = projected_slices(count, index, num_projected)
    assert index in joined
    assert 0 <= joined.start < joined.stop <= count
    assert len(joined) <= num_projected
    if num_projected // 2 < min(index, count - 1 - index):
        assert len(joined) == num_projected
        assert abs((index - joined.start) - (joined.stop - 1 - index)) <= 1
