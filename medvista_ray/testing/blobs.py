"""A blob store in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from medvista_ray.errors import BlobMissingError


class MemoryBlobStore:
    """Keeps bytes under their digest, and checks that they are."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.num_puts = 0

    async def put_if_absent(self, digest: str, data: bytes) -> None:
        """Store bytes; `ValueError` when the digest is another's."""
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise ValueError(f"the bytes have the digest {found}, not {digest}")
        self.num_puts += 1
        self.data.setdefault(digest, data)

    async def get_many(self, digests: Sequence[str]) -> list[bytes]:
        """Return the bytes of each digest; `BlobMissingError` names the first that is not there."""
        for digest in digests:
            if digest not in self.data:
                raise BlobMissingError(f"no blob {digest}")
        return [self.data[digest] for digest in digests]
