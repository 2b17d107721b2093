"""A contact sheet: images with captions, side by side. Knows pixels and text; no tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medvista_ray.images.codec import encode_png

_GAP_PX = 8
_LINE_PX = 15
_MAX_LINES = 5
_MIN_WIDTH_PX = 180  # of a cell, for its caption
_FONT_PX = 12
_BACKGROUND, _INK = (24, 24, 24), (230, 230, 230)
# Pillow's own font has no Chinese; the first of these that is installed is used for captions that need it.
_WIDE_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansSC-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "PingFang.ttc",
)
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tile:
    """One image and what stands under it."""

    pixels: np.ndarray  # uint8 [H, W, 3]
    caption: str


def draw_contact_sheet(tiles: Sequence[Tile], *, columns: int = 4) -> bytes:
    """Draw tiles in rows, their captions below them; return a PNG."""
    columns = min(columns, len(tiles))
    width = max(_MIN_WIDTH_PX, *(tile.pixels.shape[1] for tile in tiles))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.pixels.shape[0] for tile in row) for row in rows]
    caption_px = _MAX_LINES * _LINE_PX + 2 * _GAP_PX
    size = (columns * (width + _GAP_PX) + _GAP_PX, sum(heights) + len(rows) * caption_px + _GAP_PX)
    sheet = Image.new("RGB", size, _BACKGROUND)
    top = _GAP_PX
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            left = _GAP_PX + column * (width + _GAP_PX)
            sheet.paste(Image.fromarray(tile.pixels), (left, top))
            _write_caption(sheet, tile.caption, (left, top + height + _GAP_PX // 2), width)
        top += height + caption_px
    return encode_png(np.asarray(sheet))


def _write_caption(sheet: Image.Image, caption: str, place: tuple[int, int], width_px: int) -> None:
    text, draw = _clean(caption), ImageDraw.Draw(sheet)
    font = _load_font(text)
    for line, words in enumerate(_wrap(text, font, width_px)):
        draw.text((place[0], place[1] + line * _LINE_PX), words, fill=_INK, font=font)


def _clean(text: str) -> str:
    """Make one line of printable text; half a surrogate pair cannot be drawn."""
    text = text.encode("utf-8", "replace").decode()
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _load_font(text: str) -> _Font:
    if any(letter > "\u2e7f" for letter in text):
        for name in _WIDE_FONTS:
            try:
                return ImageFont.truetype(name, _FONT_PX)
            except OSError:  # not installed
                continue
    return ImageFont.load_default(_FONT_PX)


def _wrap(text: str, font: _Font, width_px: int) -> Iterator[str]:
    """Cut text into lines of a width, at blanks where there are some; the last one says that there was more."""
    rest = text
    for line in range(_MAX_LINES):
        if not rest:
            return
        count = _fitting(rest, font, width_px)
        if count < len(rest) and (blank := rest.rfind(" ", 1, count + 1)) > 0:
            count = blank
        is_cut = line == _MAX_LINES - 1 and count < len(rest)
        yield rest[: max(1, count - 1)] + "…" if is_cut else rest[:count]
        rest = rest[count:].lstrip()


def _fitting(text: str, font: _Font, width_px: int) -> int:
    """Count the letters from the first on that fit, at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle]) <= width_px else (low, middle - 1)
    return low
