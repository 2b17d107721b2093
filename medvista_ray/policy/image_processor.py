"""Turn views into patches: the stock image processor of a policy folder, one object for engine and learner.

Owns a cache by digest. Knows encoded bytes and arrays; not tokens, models or stores.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medvista_ray.errors import ImageError
from medvista_ray.images.codec import decode
from medvista_ray.policy import torchvision_shim
from medvista_ray.types.messages import PNG_MIME

MAX_ASPECT_RATIO = 200  # the stock processor accepts no more
_JPEG_MAGIC = b"\xff\xd8"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreparedImages:
    """Patches of N images, one after the other."""

    pixel_values: torch.Tensor  # float32 [sum of patches, channels * frames * patch * patch]
    grid_thw: torch.Tensor  # int64 [N, 3] frames, rows, columns in patches
    merge_size: int  # patches along one side of a feature

    @property
    def grids(self) -> list[tuple[int, int, int]]:
        """Return (frames, rows, columns) of each image."""
        return [(int(t), int(h), int(w)) for t, h, w in self.grid_thw.tolist()]

    @property
    def num_features(self) -> list[int]:
        """Return how many tokens each image takes."""
        return [t * h * w // self.merge_size**2 for t, h, w in self.grids]

    @property
    def size_bytes(self) -> int:
        """Return the memory of the patches."""
        return self.pixel_values.nbytes

    def split(self) -> list[PreparedImages]:
        """Return one record per image; each owns its memory."""
        parts = torch.split(self.pixel_values, self.grid_thw.prod(-1).tolist())
        return [
            PreparedImages(pixel_values=part.clone(), grid_thw=grid[None].clone(), merge_size=self.merge_size)
            for part, grid in zip(parts, self.grid_thw, strict=True)
        ]


def concatenate(images: Sequence[PreparedImages]) -> PreparedImages:
    """Join at least one record, in order."""
    return PreparedImages(
        pixel_values=torch.cat([image.pixel_values for image in images]),
        grid_thw=torch.cat([image.grid_thw for image in images]),
        merge_size=images[0].merge_size,
    )


def decode_view(data: bytes) -> np.ndarray:
    """Decode what a policy is shown to uint8 [H, W, 3]; `ImageError` unless it is a PNG or a JPEG of sane shape."""
    pixels = decode(data, "image/jpeg" if data.startswith(_JPEG_MAGIC) else PNG_MIME)
    height, width = pixels.shape[:2]
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ImageError(f"{width} x {height} pixels: one side is more than {MAX_ASPECT_RATIO} times the other")
    return pixels


class ImageProcessor:
    """The stock processor and its most recent results by digest. Not thread-safe: one owner."""

    def __init__(self, folder: Path, *, cache_bytes: int = 256 * 2**20) -> None:
        torchvision_shim.install()
        from transformers import AutoImageProcessor

        self._stock: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        self._cache: OrderedDict[str, PreparedImages] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._held_bytes = 0

    @property
    def merge_size(self) -> int:
        """Return the patches along one side of a feature."""
        return int(self._stock.merge_size)

    @property
    def version(self) -> str:
        """Name the processor and a digest of its settings; equal versions give equal patches."""
        settings = json.dumps(self._stock.to_dict(), sort_keys=True, default=str)
        return f"{type(self._stock).__name__}-{hashlib.sha256(settings.encode()).hexdigest()[:16]}"

    def prepare(self, images: Sequence[np.ndarray]) -> PreparedImages:
        """Process at least one uint8 image [H, W, 3]; equal sizes go through as one batch."""
        batch = self._stock(
            images=list(images), input_data_format="channels_last", return_tensors="pt", disable_grouping=False
        )
        return PreparedImages(
            pixel_values=batch["pixel_values"], grid_thw=batch["image_grid_thw"].long(), merge_size=self.merge_size
        )

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Return the digests whose bytes `prepare_encoded` needs, each once."""
        return [digest for digest in dict.fromkeys(digests) if digest not in self._cache]

    def prepare_encoded(self, digests: Iterable[str], encoded: Mapping[str, bytes]) -> dict[str, PreparedImages]:
        """Return one record for each digest, from the cache or from its bytes; `ImageError` for the first bad one."""
        found, failed = self.try_prepare_encoded(digests, encoded)
        for error in failed.values():
            raise error
        return found

    def try_prepare_encoded(
        self, digests: Iterable[str], encoded: Mapping[str, bytes]
    ) -> tuple[dict[str, PreparedImages], dict[str, ImageError]]:
        """Return a record or an error for each digest, from the cache or from its bytes; `KeyError` without either."""
        wanted = list(dict.fromkeys(digests))
        pixels: dict[str, np.ndarray] = {}
        failed: dict[str, ImageError] = {}
        for digest in wanted:
            if digest not in self._cache:
                try:
                    pixels[digest] = decode_view(encoded[digest])
                except ImageError as error:
                    failed[digest] = error
        made = dict(zip(pixels, self.prepare(list(pixels.values())).split(), strict=True)) if pixels else {}
        found = {digest: made.get(digest) or self._cache[digest] for digest in wanted if digest not in failed}
        for digest, image in found.items():
            self._keep(digest, image)
        return found, failed

    def _keep(self, digest: str, image: PreparedImages) -> None:
        if digest in self._cache:
            self._cache.move_to_end(digest)
            return
        self._cache[digest] = image
        self._held_bytes += image.size_bytes
        while self._held_bytes > self._cache_bytes and len(self._cache) > 1:
            _, oldest = self._cache.popitem(last=False)
            self._held_bytes -= oldest.size_bytes
