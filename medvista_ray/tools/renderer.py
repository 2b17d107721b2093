"""Draws views once and remembers them: members of a group that look at the same place share one encoded image.

Owns two size-capped caches (decoded sources, drawn views) and writes to the blob cache it is given. Share one per
process between envs and threads. Knows no episode.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from medvista_ray.errors import ImageError
from medvista_ray.images.codec import decode, encode_png, make_ref
from medvista_ray.images.geometry import Transform
from medvista_ray.tools.views import View, draw_view
from medvista_ray.types.messages import PNG_MIME, ImageRef
from medvista_ray.types.protocols import BlobCache

V = TypeVar("V")
CACHE_BYTES = 64 * 2**20


class SizedCache(Generic[V]):
    """Least-recently-used values, at most `capacity_bytes` of them and always the newest. Safe between threads."""

    def __init__(self, capacity_bytes: int, *, size_of: Callable[[V], int]) -> None:
        self._capacity_bytes = capacity_bytes
        self._size_of = size_of
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self._size_bytes = 0
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """Return the bytes held now."""
        return self._size_bytes

    def get(self, key: Hashable) -> V | None:
        """Return a value, or None."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def put(self, key: Hashable, value: V) -> None:
        """Keep a value."""
        with self._lock:
            if key in self._values:
                self._size_bytes -= self._size_of(self._values.pop(key))
            self._values[key] = value
            self._size_bytes += self._size_of(value)
            while self._size_bytes > self._capacity_bytes and len(self._values) > 1:
                _, old = self._values.popitem(last=False)
                self._size_bytes -= self._size_of(old)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RenderedImage:
    """An encoded image and where it lies in its source."""

    ref: ImageRef
    data: bytes  # PNG
    pixels: np.ndarray  # uint8 [H, W, 3], read-only
    to_source: Transform


class ViewRenderer:
    """Draws and encodes views of source images."""

    def __init__(self, blobs: BlobCache, *, view_size_px: int, cache_bytes: int = CACHE_BYTES) -> None:
        self.blobs = blobs
        self.view_size_px = view_size_px
        self._sources: SizedCache[np.ndarray] = SizedCache(cache_bytes, size_of=lambda array: array.nbytes)
        self._views: SizedCache[RenderedImage] = SizedCache(cache_bytes, size_of=_size_of)
        self._by_digest: SizedCache[RenderedImage] = SizedCache(cache_bytes, size_of=_size_of)

    def render(self, source: ImageRef, view: View, *, load: Callable[[str], bytes]) -> RenderedImage:
        """Draw a view of a source; the same view of the same source is drawn once."""
        key = (source, replace(view, source_index=0))
        rendered = self._views.get(key)
        if rendered is None:
            pixels, to_source = draw_view(self._decode(source, load), view, view_size_px=self.view_size_px)
            rendered = self._encode(pixels, source=source, to_source=to_source)
            self._views.put(key, rendered)
        self._keep(rendered)
        return rendered

    def render_picture(self, pixels: np.ndarray, *, source: ImageRef, to_source: Transform) -> RenderedImage:
        """Encode pixels that a tool painted; equal pixels over the same place of a source are encoded once."""
        pixels = np.ascontiguousarray(pixels)
        key = (source, to_source, pixels.shape, hashlib.blake2b(pixels.data, digest_size=16).digest())
        rendered = self._views.get(key)
        if rendered is None:
            rendered = self._encode(pixels, source=source, to_source=to_source)
            self._views.put(key, rendered)
        self._keep(rendered)
        return rendered

    def pixels_of(self, digest: str) -> np.ndarray | None:
        """Return the pixels of an image drawn lately, read-only uint8 [H, W, 3]; None when it is not remembered."""
        rendered = self._by_digest.get(digest)
        return None if rendered is None else rendered.pixels

    def _keep(self, rendered: RenderedImage) -> None:
        self._by_digest.put(rendered.ref.digest, rendered)
        if self.blobs.missing((rendered.ref.digest,)):
            self.blobs.put(rendered.data)

    def _decode(self, source: ImageRef, load: Callable[[str], bytes]) -> np.ndarray:
        values = self._sources.get(source.digest)
        if values is None:
            values = decode(load(source.digest), source.mime)
            values.flags.writeable = False
            self._sources.put(source.digest, values)
        if values.shape[:2] != (source.height, source.width):
            raise ImageError(
                f"image {source.digest[:12]} is said to be {source.width} x {source.height} pixels "
                f"and has {values.shape[1]} x {values.shape[0]}"
            )
        return values

    def _encode(self, pixels: np.ndarray, *, source: ImageRef, to_source: Transform) -> RenderedImage:
        data = encode_png(pixels)
        pixels.flags.writeable = False
        ref = make_ref(
            data,
            mime=PNG_MIME,
            width=pixels.shape[1],
            height=pixels.shape[0],
            spacing_mm=_derived_spacing(source, to_source),
            modality=source.modality,
        )
        return RenderedImage(ref=ref, data=data, pixels=pixels, to_source=to_source)


def _size_of(image: RenderedImage) -> int:
    return len(image.data) + image.pixels.nbytes


def _derived_spacing(source: ImageRef, to_source: Transform) -> tuple[float, float] | None:
    """Return (row, column) millimetres between the pixels of a derived image."""
    if source.spacing_mm is None:
        return None
    row_mm, column_mm = source.spacing_mm
    a, b, _, d, e, _ = to_source.coefficients
    return float(np.hypot(b * column_mm, e * row_mm)), float(np.hypot(a * column_mm, d * row_mm))
