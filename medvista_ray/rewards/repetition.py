"""How much of a text says the same again. Our choice of a definition: VISTA-Gym gives the levels, not the measure.

A *loop* is a block of 1 to 256 characters that stands at least four times in a row. Its excess is what could be left
out: all but the first block. Runs of blanks count as one, so that indentation is no loop.
"""

from __future__ import annotations

import numpy as np

MAX_BLOCK_CHARS = 256
MIN_REPEATS = 4
MAX_CHARS = 16_384  # text after these is not looked at


def compute_loop_excess(text: str) -> int:
    """Return the excess of the longest loop, in characters; 0 without a loop."""
    text = " ".join(text.split())[:MAX_CHARS]
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    excess = 0
    for block in range(1, min(MAX_BLOCK_CHARS, len(codes) // MIN_REPEATS) + 1):
        run = _longest_run(codes[block:] == codes[:-block])
        if run >= (MIN_REPEATS - 1) * block:
            excess = max(excess, run)
    return excess


def _longest_run(flags: np.ndarray) -> int:
    breaks = np.flatnonzero(~flags)
    edges = np.concatenate(([-1], breaks, [len(flags)]))
    return int(np.diff(edges).max()) - 1
