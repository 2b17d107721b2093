"""Marks drawn over an image: the outline and tint of a mask, boxes with their numbers. Arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from medvista_ray.images.geometry import Box

MASK_COLOUR = (0, 255, 0)
BOX_COLOUR = (255, 255, 0)
_TINT = 0.35


def draw_mask(pixels: np.ndarray, mask: np.ndarray, *, colour: tuple[int, int, int] = MASK_COLOUR) -> np.ndarray:
    """Return uint8 [H, W, 3] with a bool mask [H, W] tinted and its outline drawn."""
    drawn = pixels.copy()
    ink = np.array(colour, np.float32)
    drawn[mask] = (drawn[mask] * (1 - _TINT) + ink * _TINT).astype(np.uint8)
    drawn[outline(mask)] = colour
    return drawn


def outline(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of a mask that touch a pixel outside of it, or the border of the image, bool [H, W]."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge: np.ndarray = mask & ~inner
    return edge


def draw_boxes(pixels: np.ndarray, boxes: Sequence[Box], *, numbers: bool = True) -> np.ndarray:
    """Return uint8 [H, W, 3] with boxes (pixels) drawn, numbered from 1."""
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    for number, (x0, y0, x1, y1) in enumerate(boxes, start=1):
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=BOX_COLOUR)
        if numbers:
            draw.text((x0 + 2, y0 + 1), str(number), fill=BOX_COLOUR)
    return np.array(image)
