"""Blobs: a bounded memory cache, and a folder whose files are whole or not there."""

from __future__ import annotations

import hashlib
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvista_ray.errors import BlobMissingError, ConfigError
from medvista_ray.images.store import FolderBlobStore, LocalBlobStore, MemoryBlobCache
from medvista_ray.testing.clock import ManualClock

DAY_S = 86_400.0


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@settings(max_examples=50, deadline=None)
@given(
    capacity=st.integers(0, 40),
    calls=st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=40),
)
def test_the_cache_is_an_lru_of_bounded_size(capacity, calls):
    cache = MemoryBlobCache(capacity)
    model: list[bytes] = []  # oldest first
    blobs = [bytes([65 + i]) * (3 * i + 1) for i in range(10)]
    for is_put, index in calls:
        data = blobs[index]
        if is_put:
            assert cache.put(data) == digest(data)
            model = [*(each for each in model if each != data), data]
            while len(model) > 1 and sum(map(len, model)) > capacity:
                model.pop(0)
        elif data in model:
            assert cache.get(digest(data)) == data
            model = [*(each for each in model if each != data), data]
        else:
            with pytest.raises(BlobMissingError):
                cache.get(digest(data))
        assert cache.size_bytes == sum(map(len, model))
        assert cache.size_bytes <= capacity or len(model) == 1
        assert cache.missing(map(digest, blobs)) == [digest(each) for each in blobs if each not in model]


def test_the_cache_is_shared_between_threads():
    cache = MemoryBlobCache(50)
    failures: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for number in range(first, first + 400):
                key = cache.put(str(number % 37).encode() * 5)
                if not cache.missing((key,)):
                    cache.put(b"x")
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert cache.size_bytes <= 50


def test_a_folder_keeps_what_it_was_given(tmp_path):
    store = FolderBlobStore(tmp_path / "a" / "b")
    store.put_if_absent(digest(b"one"), b"one")
    assert store.get(digest(b"one")) == b"one"
    assert FolderBlobStore(tmp_path / "a" / "b").get(digest(b"one")) == b"one"
    with pytest.raises(BlobMissingError, match=digest(b"two")[:12]):
        store.get(digest(b"two"))


@pytest.mark.parametrize("name", ["", "..", "../../etc/passwd", "A" * 64, "g" * 64, "0" * 63, "0" * 65])
def test_only_a_digest_is_a_name(tmp_path, name):
    store = FolderBlobStore(tmp_path)
    for call in (lambda: store.get(name), lambda: store.put_if_absent(name, b"x"), lambda: store.path_of(name)):
        with pytest.raises(BlobMissingError, match="not a digest"):
            call()


def test_bytes_of_another_digest_are_refused(tmp_path):
    store = FolderBlobStore(tmp_path)
    with pytest.raises(BlobMissingError, match="do not have the digest"):
        store.put_if_absent(digest(b"one"), b"two")
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_crash_while_writing_leaves_no_blob(tmp_path, monkeypatch):
    store = FolderBlobStore(tmp_path)

    def full_disk(path, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.rename", full_disk)
        with pytest.raises(OSError, match="No space"):
            store.put_if_absent(digest(b"one"), b"one")
    with pytest.raises(BlobMissingError):
        store.get(digest(b"one"))
    store.put_if_absent(digest(b"one"), b"one")
    assert store.get(digest(b"one")) == b"one"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [digest(b"one")]


def test_sweep_takes_old_blobs_that_nobody_needs(tmp_path):
    clock = ManualClock(1_000_000.0)
    store = FolderBlobStore(tmp_path, clock=clock)
    old, live, renewed, young = (f"blob {name}".encode() for name in ("old", "live", "renewed", "young"))
    for data in (old, live, renewed):
        store.put_if_absent(digest(data), data)
    clock.advance(100)
    store.put_if_absent(digest(renewed), renewed)
    store.put_if_absent(digest(young), young)
    assert store.sweep({digest(live)}, older_than_s=100.0) == 0  # exactly as old as the bound is not older
    clock.advance(1)
    assert store.sweep({digest(live)}, older_than_s=100.0) == 1
    with pytest.raises(BlobMissingError):
        store.get(digest(old))
    for data in (live, renewed, young):
        assert store.get(digest(data)) == data


def test_a_new_blob_is_as_old_as_the_clock_says(tmp_path):
    """The age of a first put must come from the same clock as the horizon of a sweep."""
    clock = ManualClock(5_000_000_000.0)  # far in the future of the file system's own time
    store = FolderBlobStore(tmp_path, clock=clock)
    store.put_if_absent(digest(b"new"), b"new")
    assert store.sweep((), older_than_s=DAY_S) == 0
    clock.advance(DAY_S + 1)
    assert store.sweep((), older_than_s=DAY_S) == 1


def test_sweep_takes_what_a_crash_left(tmp_path):
    clock = ManualClock(1_000_000.0)
    store = FolderBlobStore(tmp_path, clock=clock)
    store.put_if_absent(digest(b"one"), b"one")
    leftover = store.path_of(digest(b"one")).with_suffix(".77.part")
    leftover.write_bytes(b"on")
    clock.now_s = leftover.stat().st_mtime + 11
    assert store.sweep({digest(b"one")}, older_than_s=10) == 1
    assert not leftover.exists()


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"^out: .*choose another$"):
        FolderBlobStore(tmp_path / "file" / "blobs")


async def test_the_local_store_reads_through_its_cache(tmp_path):
    folder = FolderBlobStore(tmp_path)
    store = LocalBlobStore(folder, cache_bytes=10)
    blobs = [bytes([65 + i]) * 6 for i in range(3)]
    for data in blobs:
        await store.put_if_absent(digest(data), data)
    assert await store.get_many([digest(data) for data in (*blobs, blobs[0])]) == [*blobs, blobs[0]]
    with pytest.raises(BlobMissingError, match=digest(b"?")[:12]):
        await store.get_many([digest(blobs[0]), digest(b"?")])
