"""Canaries: a reference whose every field holds a value that occurs nowhere else, and the bytes to search for.

An env that lets any of these needles out, in an observation, an info, an image or a repr, shows the policy the answer.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from medvista_ray.types.messages import Reference

_MIN_BYTES = 4  # shorter needles, such as a single 1, occur by chance


def make_canary_reference(
    *, answer: str = "canary-answer-7f3a", task_id: str = "canary-task-91bc", mask_shape: tuple[int, int] = (60, 84)
) -> Reference:
    """Make a reference with a canary in every field; `mask_shape` is [H, W] of image 0."""
    rng = np.random.default_rng(20_260)
    return Reference(
        task_id=task_id,
        answer=answer,
        aliases=("canary-alias-55d1", "canary-alias-77e2"),
        items=("canary-item-0c4b", "canary-item-1c4b"),
        tolerance=0.012345678910111213,
        absolute_tolerance=0.098765432101234567,
        boxes=np.array([[31337.5, 42424.25, 53535.75, 64646.125]], np.float32),
        regions=np.array([[21337.5, 22424.25, 23535.75, 24646.125]], np.float32),
        mask=rng.random(mask_shape) < 0.5,
    )


def needles_of(reference: Reference) -> list[bytes]:
    """Return the byte strings that give a reference away: each field as text and as the bytes of its numbers."""
    needles: list[bytes] = []
    for field in fields(reference):
        value = getattr(reference, field.name)
        for item in value if isinstance(value, tuple) else (value,):
            needles.extend(_needles_of_value(item))
    return [needle for needle in dict.fromkeys(needles) if len(needle) >= _MIN_BYTES]


def find_leaks(pieces: list[bytes], needles: list[bytes]) -> list[bytes]:
    """Return the needles that stand in any of the pieces."""
    return [needle for needle in needles if any(needle in piece for piece in pieces)]


def _needles_of_value(value: object) -> list[bytes]:
    if isinstance(value, str):
        return [value.encode("utf-8", "surrogatepass")]
    if isinstance(value, float):
        return [repr(value).encode(), np.float64(value).tobytes(), np.float32(value).tobytes()]
    if isinstance(value, np.ndarray) and value.dtype == np.bool_:
        return _needles_of_mask(value)
    if isinstance(value, np.ndarray):
        return [needle for number in value.ravel() for needle in _needles_of_value(float(number))]
    return []


def _needles_of_mask(mask: np.ndarray) -> list[bytes]:
    """Return a row of a mask in the forms in which it could travel: bytes, bits, grey levels, text."""
    row = mask[len(mask) // 2][:64]
    if row.all() or not row.any():
        return []
    levels = row.astype(np.uint8)
    return [
        row.tobytes(),
        np.packbits(row).tobytes(),
        (levels * 255).tobytes(),
        np.repeat(levels * 255, 3).tobytes(),
        "".join("1" if value else "0" for value in row).encode(),
        repr(row.tolist()).encode(),
        repr(levels.tolist()).encode(),
    ]
