"""Four letters with equal ink, and the two ways they are put into an image. Arrays only.

`LETTERS` have the same number of ink cells on each grid, so brightness tells nothing.
"""

from __future__ import annotations

from functools import cache

import numpy as np

LETTERS = ("L", "T", "X", "J")
BLOCK_PX = 3  # the thumbnail averages blocks of 3 x 3 pixels
# Zero mean over a block: the plain downscale of ink and of background is the same grey.
_TEXTURE = np.array([[100, -100, 100], [-100, 0, -100], [100, -100, 100]], dtype=np.int16)
GREY = 128
CELLS = 5
BLOCKS_PER_CELL = 2
MARGIN_BLOCKS = 1
PATCH_PX = (CELLS * BLOCKS_PER_CELL + 2 * MARGIN_BLOCKS) * BLOCK_PX  # 36


@cache
def letter_cells(letter: str, size: int) -> np.ndarray:
    """Return the ink of a letter on a square grid of odd size, bool [size, size]; 2 size - 1 cells of ink."""
    cells = np.zeros((size, size), dtype=bool)
    index = np.arange(size)
    if letter == "L":
        cells[:, 0] = cells[-1, :] = True
    elif letter == "J":
        cells[:, -1] = cells[-1, :] = True
    elif letter == "T":
        cells[0, :] = cells[:, size // 2] = True
    elif letter == "X":
        cells[index, index] = cells[index, size - 1 - index] = True
    else:
        raise ValueError(f"letter must be one of {LETTERS}, got {letter!r}")
    cells.flags.writeable = False
    return cells


def texture_patch(letter: str) -> np.ndarray:
    """Return a letter as zero-mean texture, uint8 [36, 36]: visible at full resolution, flat grey in the thumbnail."""
    cell_px = BLOCKS_PER_CELL * BLOCK_PX
    ink = np.kron(letter_cells(letter, CELLS), np.ones((cell_px, cell_px), dtype=np.int16))
    pattern = np.tile(_TEXTURE, (CELLS * BLOCKS_PER_CELL, CELLS * BLOCKS_PER_CELL))
    patch = np.full((PATCH_PX, PATCH_PX), GREY, dtype=np.int16)
    margin = MARGIN_BLOCKS * BLOCK_PX
    patch[margin:-margin, margin:-margin] += ink * pattern
    return patch.astype(np.uint8)
