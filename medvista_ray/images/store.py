"""Where encoded bytes live: a size-capped memory cache, and a folder that owns them. Content-addressed; no meaning.

`MemoryBlobCache` is the synchronous cache of an env, a shard, an engine or a learner rank. `FolderBlobStore` owns the
bytes of a run: files written under a temporary name and renamed, so that a crash leaves no half blob.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from medvista_ray.errors import BlobMissingError, ConfigError
from medvista_ray.images.codec import digest_of


class MemoryBlobCache:
    """Least-recently-used bytes by digest, at most `capacity_bytes` of them. Safe to share between threads."""

    def __init__(self, capacity_bytes: int = 256 * 2**20) -> None:
        self._capacity_bytes = capacity_bytes
        self._blobs: OrderedDict[str, bytes] = OrderedDict()
        self._size_bytes = 0
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """Return the bytes held now."""
        return self._size_bytes

    def put(self, data: bytes) -> str:
        """Keep bytes; return their digest. The newest blob is kept even when it alone exceeds the capacity."""
        digest = digest_of(data)
        with self._lock:
            if digest in self._blobs:
                self._blobs.move_to_end(digest)
                return digest
            self._blobs[digest] = data
            self._size_bytes += len(data)
            while self._size_bytes > self._capacity_bytes and len(self._blobs) > 1:
                _, old = self._blobs.popitem(last=False)
                self._size_bytes -= len(old)
        return digest

    def get(self, digest: str) -> bytes:
        """Return bytes; `BlobMissingError` if they are not here."""
        with self._lock:
            try:
                self._blobs.move_to_end(digest)
                return self._blobs[digest]
            except KeyError:
                raise BlobMissingError(f"blob {digest[:12]} is not in the cache") from None

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Return the digests that are not here."""
        with self._lock:
            return [digest for digest in digests if digest not in self._blobs]


class FolderBlobStore:
    """Owns blobs as files `<digest[:2]>/<digest>`; touch and unlink happen under one lock."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"out: cannot make the blob folder {folder}: {error.strerror}; choose another") from error

    def path_of(self, digest: str) -> Path:
        """Return where a blob lies, or would lie."""
        if len(digest) != 64 or not all(letter in "0123456789abcdef" for letter in digest):
            raise BlobMissingError(f"{digest[:80]!r} is not a digest")
        return self._folder / digest[:2] / digest

    def put_if_absent(self, digest: str, data: bytes) -> None:
        """Store bytes under their SHA-256, or renew the age of the blob that is there."""
        path = self.path_of(digest)
        with self._lock:
            now = self._clock()
            if path.exists():
                os.utime(path, (now, now))
                return
            if digest_of(data) != digest:
                raise BlobMissingError(f"bytes do not have the digest {digest[:12]}")
            path.parent.mkdir(exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}.part")
            partial.write_bytes(data)
            os.utime(partial, (now, now))
            partial.rename(path)

    def get(self, digest: str) -> bytes:
        """Return bytes; `BlobMissingError` if there are none."""
        try:
            return self.path_of(digest).read_bytes()
        except FileNotFoundError:
            raise BlobMissingError(f"blob {digest[:12]} is not in the store") from None

    def sweep(self, live: Iterable[str], *, older_than_s: float) -> int:
        """Delete blobs that are not live and older than the bound; return how many."""
        keep = set(live)
        deleted = 0
        with self._lock:
            horizon = self._clock() - older_than_s
            for path in self._folder.glob("??/*"):
                if path.name not in keep and path.stat().st_mtime < horizon:
                    path.unlink()
                    deleted += 1
        return deleted


class LocalBlobStore:
    """The async face of a `FolderBlobStore` in the same process, behind a memory cache."""

    def __init__(self, store: FolderBlobStore, *, cache_bytes: int = 256 * 2**20) -> None:
        self._store = store
        self._cache = MemoryBlobCache(cache_bytes)

    async def put_if_absent(self, digest: str, data: bytes) -> None:
        """Store bytes under their SHA-256; files are small, so the write stays in the event loop."""
        self._store.put_if_absent(digest, data)
        self._cache.put(data)

    async def get_many(self, digests: Sequence[str]) -> list[bytes]:
        """Return the bytes of each digest."""
        return [self._one(digest) for digest in digests]

    def _one(self, digest: str) -> bytes:
        if not self._cache.missing((digest,)):
            return self._cache.get(digest)
        data = self._store.get(digest)
        self._cache.put(data)
        return data
