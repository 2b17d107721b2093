"""M-RoPE positions of one expanded token stream. Knows spans and grids; not models, tensors or padding.

Axis: L tokens of one row. Text tokens share one counter in all three axes; the features of an image keep the temporal
axis at the counter, run over rows and columns on the other two, and the counter goes on behind the longer side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medvista_ray.types.trajectories import ImageSpan


def compute_positions(
    length: int, image_spans: Sequence[ImageSpan], grids: Sequence[tuple[int, int, int]], merge_size: int
) -> tuple[np.ndarray, int]:
    """Return int64 [3, L] (time, row, column) and the position of the token that would come next.

    Args:
        length: number of tokens, image features included.
        image_spans: where the features stand, in order of offset.
        grids: (time, rows, columns) in patches of each span's image.
        merge_size: patches along one side of a feature.
    """
    positions = np.empty((3, length), np.int64)
    counter, done = 0, 0
    for span, (frames, rows, columns) in zip(image_spans, grids, strict=True):
        text = span.offset - done
        positions[:, done : span.offset] = np.arange(counter, counter + text)
        counter += text
        shape = (frames, rows // merge_size, columns // merge_size)
        end = span.offset + span.length
        positions[:, span.offset : end] = counter + np.indices(shape).reshape(3, -1)
        counter += max(shape[1], shape[2])
        done = end
    positions[:, done:] = np.arange(counter, counter + length - done)
    return positions, counter + length - done
