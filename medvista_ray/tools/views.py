"""A view: which part of which source image is shown, which way round, through which window; and how it is drawn.

Every view is drawn from the source at full resolution, so a chain of tools loses nothing. Knows arrays and geometry;
not tools, tasks or episodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medvista_ray.errors import ToolArgumentError
from medvista_ray.images.geometry import Box, Transform, crop_and_scale, downscale
from medvista_ray.images.windowing import DEFAULT_PRESET, PRESETS, apply_window, to_rgb
from medvista_ray.types.messages import NPY_MIME, ImageRef

MAX_ASPECT_RATIO = 100.0  # longer images are refused: the image processors of the model families stop at 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Centre and width in stored values (HU for CT)."""

    center: float
    width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Orientation:
    """One of the eight ways to lay an image down: mirrored left-right first if `is_flipped`, then turned."""

    is_flipped: bool = False
    quarter_turns: int = 0  # counter-clockwise, 0..3

    def then_turned(self, quarter_turns: int) -> Orientation:
        """Turn counter-clockwise."""
        return Orientation(is_flipped=self.is_flipped, quarter_turns=(self.quarter_turns + quarter_turns) % 4)

    def then_flipped_horizontally(self) -> Orientation:
        """Mirror left-right."""
        return Orientation(is_flipped=not self.is_flipped, quarter_turns=-self.quarter_turns % 4)

    def then_flipped_vertically(self) -> Orientation:
        """Mirror top-bottom."""
        return self.then_flipped_horizontally().then_turned(2)


UPRIGHT = Orientation()


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is shown of one source image."""

    source_index: int
    box: Box | None = None  # source pixels; None = all of it
    orientation: Orientation = UPRIGHT
    window: Window | None = None  # None = as stored, for 8-bit sources


def default_window(source: ImageRef) -> Window | None:
    """Return the window that a source is first shown through; None for 8-bit pixels."""
    if source.mime != NPY_MIME:
        return None
    center, width = PRESETS[DEFAULT_PRESET]
    return Window(center=center, width=width)


def draw_view(source: np.ndarray, view: View, *, view_size_px: int) -> tuple[np.ndarray, Transform]:
    """Draw a view: uint8 [H, W, 3], and the map from its pixels to those of the source.

    All of an image is only ever shrunk; a part is scaled to `view_size_px`.
    """
    height, width = source.shape[:2]
    part_box = (0, 0, width, height) if view.box is None else whole_pixels(view.box, width=width, height=height)
    if part_box == (0, 0, width, height):
        pixels = downscale(_to_grey_levels(source, view.window), view_size_px)
        scale_x, scale_y = width / pixels.shape[1], height / pixels.shape[0]
        to_source = Transform(coefficients=(scale_x, 0.0, 0.0, 0.0, scale_y, 0.0))
    else:
        x0, y0, x1, y1 = part_box
        part = _to_grey_levels(source[y0:y1, x0:x1], view.window)
        pixels, to_part = crop_and_scale(part, (0, 0, x1 - x0, y1 - y0), view_size_px)
        to_source = Transform(coefficients=(1.0, 0.0, float(x0), 0.0, 1.0, float(y0))).after(to_part)
    if pixels.ndim == 2:
        pixels = to_rgb(pixels)
    return lay_down(pixels, to_source, view.orientation)


def whole_pixels(box: Box, *, width: int, height: int) -> tuple[int, int, int, int]:
    """Round a box to whole pixels inside the image; `ToolArgumentError` when nothing, or a mere line, is left."""
    x0, y0 = max(0, round(box[0])), max(0, round(box[1]))
    x1, y1 = min(width, round(box[2])), min(height, round(box[3]))
    if x1 <= x0 or y1 <= y0:
        raise ToolArgumentError("the box is smaller than one pixel of the image")
    check_aspect_ratio(x1 - x0, y1 - y0)
    return x0, y0, x1, y1


def check_aspect_ratio(width: int, height: int) -> None:
    """Refuse an image that is all but a line."""
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ToolArgumentError(f"{width} x {height} pixels: more than {MAX_ASPECT_RATIO:.0f} times as long as wide")


def _to_grey_levels(source: np.ndarray, window: Window | None) -> np.ndarray:
    if source.dtype == np.uint8 or window is None:
        return source
    return apply_window(source, center=window.center, width=window.width)


def lay_down(pixels: np.ndarray, to_source: Transform, orientation: Orientation) -> tuple[np.ndarray, Transform]:
    """Mirror and turn pixels; return them with the map from their coordinates to the source."""
    if orientation.is_flipped:
        pixels = pixels[:, ::-1]
        to_source = to_source.after(Transform(coefficients=(-1.0, 0.0, float(pixels.shape[1]), 0.0, 1.0, 0.0)))
    for _ in range(orientation.quarter_turns):
        # a point (x, y) of the turned image was at (width - y, x)
        to_source = to_source.after(Transform(coefficients=(0.0, -1.0, float(pixels.shape[1]), 1.0, 0.0, 0.0)))
        pixels = np.rot90(pixels)
    return np.ascontiguousarray(pixels), to_source
