"""A torn last frame ends a file quietly; a damaged one is named by its offset, wherever the damage is."""

import io
from pathlib import Path

import pytest
from fuzz_cases import fuzz
from hypothesis import given
from hypothesis import strategies as st

from medvista_ray.errors import WireError
from medvista_ray.types.wire import cut_torn_tail, iter_frames, write_frame

PAYLOADS = [b"first", b"x" * 1000, b"\0", b"last"]


def make_file(payloads: list[bytes]) -> bytes:
    file = io.BytesIO()
    for payload in payloads:
        before = file.tell()
        assert write_frame(file, payload) == file.tell() - before
    return file.getvalue()


def test_frames_round_trip() -> None:
    assert list(iter_frames(io.BytesIO(make_file(PAYLOADS)))) == PAYLOADS
    assert list(iter_frames(io.BytesIO(b""))) == []


@fuzz
@given(st.integers(0, len(make_file(PAYLOADS))))
def test_a_torn_tail_is_cut_at_any_byte(cut: int) -> None:
    data = make_file(PAYLOADS)
    ends = [len(make_file(PAYLOADS[: count + 1])) for count in range(len(PAYLOADS))]
    whole = sum(end <= cut for end in ends)
    assert list(iter_frames(io.BytesIO(data[:cut]))) == PAYLOADS[:whole]


@fuzz
@given(st.integers(0, len(make_file(PAYLOADS)) - 1), st.integers(1, 255))
def test_any_changed_byte_is_found_and_named(position: int, flip: int) -> None:
    data = bytearray(make_file(PAYLOADS))
    data[position] ^= flip
    ends = [0, *(len(make_file(PAYLOADS[: count + 1])) for count in range(len(PAYLOADS)))]
    offset = max(end for end in ends if end <= position)
    seen = []
    with pytest.raises(WireError, match=f"frame at byte {offset} is damaged"):
        seen.extend(iter_frames(io.BytesIO(bytes(data))))


def test_a_tail_of_zeros_is_damage() -> None:
    with pytest.raises(WireError, match="frame at byte 17 is damaged"):
        list(iter_frames(io.BytesIO(make_file([b"first"]) + b"\0" * 64)))


def test_an_empty_or_huge_payload_is_refused() -> None:
    with pytest.raises(WireError, match="got 0"):
        write_frame(io.BytesIO(), b"")


def test_a_writer_goes_on_behind_a_torn_tail(tmp_path: Path) -> None:
    path = tmp_path / "records"
    path.write_bytes(make_file([b"one", b"two"])[:-1])
    with path.open("r+b") as file:
        assert cut_torn_tail(file) == 14
        write_frame(file, b"three")
    with path.open("rb") as file:
        assert list(iter_frames(file)) == [b"one", b"three"]
