"""What the families share: a random square cut of a real image, a ring, and encoded task records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from medvista_ray.data.manifest import Split, select_entries
from medvista_ray.data.source_images import SourceImage, load_source_images
from medvista_ray.errors import DataError
from medvista_ray.images.codec import encode_npy, encode_png, make_ref
from medvista_ray.types.messages import NPY_MIME, PNG_MIME, ImageRef

FULL_PX = 252  # side of an 8-bit item at full resolution; three times the demo's view
VIEW_PX = 84  # side of the demo's view, and of an item with more than 8 bits
RING_COLOUR = (0, 255, 0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pool:
    """The images that one family may draw from, by manifest entry."""

    sources: tuple[tuple[SourceImage, ...], ...]
    augment: bool = False  # vary colours: the few files of the training split show few

    def draw(self, rng: np.random.Generator) -> SourceImage:
        """Draw an entry with equal weight, then one of its slices."""
        slices = self.sources[int(rng.integers(len(self.sources)))]
        return slices[int(rng.integers(len(slices)))]


def load_pool(
    source: str, split: Split, family: str, *, keep: Callable[[SourceImage], bool] = lambda image: True
) -> Pool:
    """Load the images of a family in one split, without those that `keep` rejects."""
    groups: list[tuple[SourceImage, ...]] = []
    for entry in select_entries(source, split, family):
        images = tuple(image for image in load_source_images(entry) if keep(image))
        if images:
            groups.append(images)
    if not groups:
        raise DataError(f"data.families: no {split} image of {source!r} suits family {family!r}")
    return Pool(sources=tuple(groups), augment=split == "train")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cut:
    """A random square part of a source image, resized."""

    pixels: np.ndarray  # uint8 [side, side, 3], or float32 [side, side]
    spacing_mm: tuple[float, float] | None


def draw_cut(
    rng: np.random.Generator,
    image: SourceImage,
    side_px: int,
    *,
    use_values: bool = False,
    min_share: float = 0.6,
    turn: bool = True,
) -> Cut:
    """Cut a square of `min_share` to 1 of the shorter side and resize it; flip and turn it unless told not to."""
    array = image.values if use_values else image.pixels
    if array is None:
        raise DataError(f"data.source: {image.source} has no values of more than 8 bits")
    shorter = min(array.shape[:2])
    size = max(8, int(shorter * rng.uniform(min_share, 1.0)))
    top = int(rng.integers(array.shape[0] - size + 1))
    left = int(rng.integers(array.shape[1] - size + 1))
    part = np.ascontiguousarray(array[top : top + size, left : left + size])
    method = Image.Resampling.BICUBIC if size < side_px else Image.Resampling.BOX
    pixels = np.array(Image.fromarray(part).resize((side_px, side_px), method))
    spacing = image.spacing_mm
    if spacing is not None:
        spacing = (spacing[0] * size / side_px, spacing[1] * size / side_px)
    if turn:
        quarter = int(rng.integers(4))
        pixels = np.rot90(pixels, quarter)
        if spacing is not None and quarter % 2:
            spacing = (spacing[1], spacing[0])
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
    return Cut(pixels=np.ascontiguousarray(pixels), spacing_mm=spacing)


def vary_look(rng: np.random.Generator, pixels: np.ndarray, *, augment: bool) -> np.ndarray:
    """Change the brightness, and in training the colours, of uint8 [H, W, 3]; shares and ranges are our own choice."""
    if rng.random() < 0.7:
        pixels = _look_up(pixels, (np.arange(256) * rng.uniform(0.7, 1.1))[:, None])
    return _change_colours(rng, pixels) if augment else pixels


def _change_colours(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Invert a fifth of the images and tint half of them; green is never raised, so that a ring stays visible."""
    levels = np.arange(256.0)[:, None]
    if rng.random() < 0.2:
        levels = 255.0 - levels
    gains = rng.uniform((0.4, 0.4, 0.4), (1.3, 1.0, 1.3)) if rng.random() < 0.5 else np.ones(3)
    return _look_up(pixels, levels * gains)


def _look_up(pixels: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Replace every value by its entry in `levels` [256, 1 or 3]."""
    table = np.broadcast_to(np.clip(levels, 0, 255).astype(np.uint8), (256, 3))
    return np.stack([table[pixels[..., channel], channel] for channel in range(3)], axis=-1)


def draw_ring(rng: np.random.Generator, pixels: np.ndarray, center: tuple[int, int]) -> None:
    """Draw a green ring of radius 21 to 25 px around (x, y) into uint8 [H, W, 3], in place."""
    radius, width = rng.uniform(21.0, 25.0), rng.uniform(3.0, 4.5)
    x, y = center
    reach = 26
    top, left = max(0, y - reach), max(0, x - reach)
    part = pixels[top : y + reach + 1, left : x + reach + 1]
    rows, columns = np.ogrid[top : top + part.shape[0], left : left + part.shape[1]]
    distance = np.sqrt((rows - y) ** 2 + (columns - x) ** 2)
    part[(distance <= radius) & (distance > radius - width)] = RING_COLOUR


def encode_pixels(
    pixels: np.ndarray, *, spacing_mm: tuple[float, float] | None, modality: str | None
) -> tuple[ImageRef, dict[str, bytes]]:
    """Encode an 8-bit item; return its reference and its bytes by digest."""
    data = encode_png(pixels)
    height, width = pixels.shape[:2]
    ref = make_ref(data, mime=PNG_MIME, width=width, height=height, spacing_mm=spacing_mm, modality=modality)
    return ref, {ref.digest: data}


def encode_values(
    values: np.ndarray, *, spacing_mm: tuple[float, float] | None, modality: str | None
) -> tuple[ImageRef, dict[str, bytes]]:
    """Encode an item of more than 8 bits as int16; return its reference and its bytes by digest."""
    data = encode_npy(np.clip(np.round(values), -32768, 32767).astype(np.int16))
    height, width = values.shape
    ref = make_ref(data, mime=NPY_MIME, width=width, height=height, spacing_mm=spacing_mm, modality=modality)
    return ref, {ref.digest: data}


def all_views_equal(views: Sequence[np.ndarray]) -> bool:
    """Return whether the first views of all possible answers are the same array: the proof that a tool is needed."""
    return all(np.array_equal(views[0], view) for view in views[1:])
