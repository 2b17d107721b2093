"""What the scripts of this folder share: made parts of a page between markers, and panels side by side. Knows no gym.

A made part stands between `<!-- made: NAME -->` and `<!-- end -->`; what is outside of them is written by hand.
"""

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

DOCS = Path(__file__).parent
WIDTH_PX, GAP_PX, LINE_PX, FONT_PX, MOST_IN_ROW = 888, 12, 16, 13, 3
MEAN_DIFFERENCE, FAR_LEVELS, FAR_SHARE = 2.0, 40, 0.005  # what two pictures that say the same may differ by
_INSET_PX = 6
GREYS, COLOURS = 56, 72  # of a picture: shades of grey, and the colours of its marks and photographs
_COLOURED = 24  # difference of the channels from which a pixel is no grey
_PART = re.compile(r"(?P<head><!-- made: (?P<name>[\w-]+) -->\n).*?(?P<tail><!-- end -->)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Panel:
    """One picture of a row, or a text in its place."""

    caption: str
    pixels: np.ndarray | None = None  # uint8 [H, W, 3]
    text: str = ""


def fill_parts(page: str, parts: Mapping[str, str]) -> str:
    """Put every made part into a page; `ValueError` when the page asks for one that nobody makes, or lacks one."""
    asked = [match["name"] for match in _PART.finditer(page)]
    if sorted(asked) != sorted(parts):
        raise ValueError(f"the page asks for {sorted(asked)}, there are {sorted(parts)}")
    return _PART.sub(lambda match: f"{match['head']}{parts[match['name']].strip()}\n{match['tail']}", page)


def fence(text: str, kind: str = "text") -> str:
    """Return a fenced block."""
    return f"```{kind}\n{text}\n```"


def draw_row(panels: Sequence[Panel]) -> Image.Image:
    """Draw panels side by side, at most three in a row, each under its caption."""
    num_columns = min(len(panels), MOST_IN_ROW)
    side = (WIDTH_PX - (num_columns - 1) * GAP_PX) // num_columns
    rows = [panels[first : first + num_columns] for first in range(0, len(panels), num_columns)]
    drawn = [_draw_panels(row, side) for row in rows]
    page = Image.new("RGB", (WIDTH_PX, sum(row[0].height for row in drawn) + GAP_PX * (len(rows) - 1)), "white")
    top = 0
    for row in drawn:
        for column, image in enumerate(row):
            page.paste(image, (column * (side + GAP_PX), top))
        top += row[0].height + GAP_PX
    return page


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture with few colours, so that it stays small."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = picture.quantize(palette=_make_palette(picture), dither=Image.Dither.NONE)
    white = Image.fromarray((np.array(picture) == 255).all(axis=2))
    small.paste(GREYS - 1, mask=white)  # Pillow finds the nearest colour of the palette roughly only
    small.save(path, optimize=True)


def _make_palette(picture: Image.Image) -> Image.Image:
    """Choose greys evenly and colours by what there is, so that neither tints the other."""
    pixels = np.array(picture).reshape(-1, 3)
    palette = np.repeat(np.linspace(0, 255, GREYS).round().astype(np.uint8), 3).tolist()
    coloured = pixels[pixels.max(axis=1).astype(int) - pixels.min(axis=1) >= _COLOURED]
    if len(coloured):
        found = Image.fromarray(coloured[None]).quantize(COLOURS).getpalette() or []
        palette += found[: 3 * COLOURS]
    image = Image.new("P", (1, 1))
    image.putpalette(palette)
    return image


def _draw_panels(panels: Sequence[Panel], side: int) -> list[Image.Image]:
    """Draw the panels of one row, all of one height, the pictures at one level."""
    captions = [_wrap(panel.caption, side) for panel in panels]
    top = LINE_PX * max(len(lines) for lines in captions) + 4
    bodies = [_draw_text(panel.text, side) if panel.pixels is None else _fit(panel.pixels, side) for panel in panels]
    height = top + max(body.height for body in bodies)
    drawn = []
    for lines, body in zip(captions, bodies, strict=True):
        image = Image.new("RGB", (side, height), "white")
        _write(image, lines, (0, 0))
        image.paste(body, (0, top))
        drawn.append(image)
    return drawn


def _draw_text(text: str, side: int) -> Image.Image:
    lines = [line for given in text.splitlines() for line in _wrap(given, side - 2 * _INSET_PX)]
    image = Image.new("RGB", (side, LINE_PX * len(lines) + 2 * _INSET_PX), "white")
    ImageDraw.Draw(image).rectangle((0, 0, image.width - 1, image.height - 1), outline="black")
    _write(image, lines, (_INSET_PX, _INSET_PX))
    return image


def _wrap(text: str, width_px: int) -> list[str]:
    return textwrap.wrap(text, int(width_px / (FONT_PX * 0.52))) or [""]


def _write(image: Image.Image, lines: Sequence[str], place: tuple[int, int]) -> None:
    font = ImageFont.load_default(size=FONT_PX)
    for number, line in enumerate(lines):
        ImageDraw.Draw(image).text((place[0], place[1] + LINE_PX * number), line, "black", font)


def _fit(pixels: np.ndarray, side: int) -> Image.Image:
    image = Image.fromarray(pixels)
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS)


def is_nearly_equal(one: Image.Image, other: Image.Image) -> bool:
    """Compare two pictures: one size, and pixels that differ no more than another font or decoder makes them."""
    if one.size != other.size:
        return False
    first, second = (np.array(picture.convert("RGB"), np.int16) for picture in (one, other))
    difference = np.abs(first - second).max(axis=2)
    return float(difference.mean()) < MEAN_DIFFERENCE and float((difference > FAR_LEVELS).mean()) < FAR_SHARE
