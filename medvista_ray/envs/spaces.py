"""Two Gymnasium spaces of ours: any Unicode text, and a tuple of images of any size and number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

_SAMPLE_CHARS = 32
_SAMPLE_SIDE_PX = 16


class UnicodeText(gymnasium.spaces.Space[str]):  # type: ignore[misc]
    """Any text; the stock `Text` space refuses what is not ASCII."""

    def __init__(self, *, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(None, str, seed)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Draw up to 32 characters from all of Unicode; masks mean nothing here."""
        _refuse_masks(mask, probability)
        codes = self.np_random.integers(1, 0x11_0000 - 0x800, size=int(self.np_random.integers(_SAMPLE_CHARS + 1)))
        return "".join(chr(code if code < 0xD800 else code + 0x800) for code in codes.tolist())

    def contains(self, x: Any) -> bool:
        """Return whether `x` is text."""
        return isinstance(x, str)

    @property
    def is_np_flattenable(self) -> bool:
        """Text of any length has no fixed box."""
        return False

    def __repr__(self) -> str:
        return "UnicodeText()"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnicodeText)

    def __hash__(self) -> int:
        return hash("UnicodeText")


class ImageTuple(gymnasium.spaces.Space[tuple[np.ndarray, ...]]):  # type: ignore[misc]
    """Any number of images, uint8 [H, W, 3] each of its own size."""

    def __init__(self, *, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(None, None, seed)

    def sample(self, mask: Any = None, probability: Any = None) -> tuple[np.ndarray, ...]:
        """Draw up to two small images of noise; masks mean nothing here."""
        _refuse_masks(mask, probability)
        sizes = self.np_random.integers(1, _SAMPLE_SIDE_PX + 1, size=(int(self.np_random.integers(3)), 2)).tolist()
        return tuple(
            self.np_random.integers(0, 256, size=(height, width, 3), dtype=np.uint8) for height, width in sizes
        )

    def contains(self, x: Any) -> bool:
        """Return whether `x` is a tuple of uint8 [H, W, 3] arrays that hold a pixel."""
        return isinstance(x, tuple) and all(_is_image(image) for image in x)

    @property
    def is_np_flattenable(self) -> bool:
        """Images of any size have no fixed box."""
        return False

    def to_jsonable(self, sample_n: Sequence[tuple[np.ndarray, ...]]) -> list[Any]:
        """Return nested lists."""
        return [[image.tolist() for image in images] for images in sample_n]

    def from_jsonable(self, sample_n: list[Any]) -> list[tuple[np.ndarray, ...]]:
        """Read nested lists back."""
        return [tuple(np.array(image, dtype=np.uint8) for image in images) for images in sample_n]

    def __repr__(self) -> str:
        return "ImageTuple()"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageTuple)

    def __hash__(self) -> int:
        return hash("ImageTuple")


def _is_image(value: Any) -> bool:
    return (
        isinstance(value, np.ndarray)
        and value.dtype == np.uint8
        and value.ndim == 3
        and value.shape[2] == 3
        and value.size > 0
    )


def _refuse_masks(mask: Any, probability: Any) -> None:
    if mask is not None or probability is not None:
        raise ValueError("this space cannot be sampled with a mask or with probabilities")
