"""Head CT: the mean attenuation of a patch, in Hounsfield units, in one real head CT.

One head: training shows its lower slices, held-out items its upper ones. The file carries no diagnosis, and none is
asked for.
"""

from __future__ import annotations

import tarfile
from functools import cache

import numpy as np

from medvista_ray.data.manifest import Split, find_entry
from medvista_ray.data.scene import encode_values
from medvista_ray.errors import DataError
from medvista_ray.types.messages import Reference, Task
from medvista_ray.types.protocols import TaskRecord

FAMILY = "hu_at_patch"
QUESTION = "What is the mean attenuation, in HU, in the box {x0}, {y0}, {x1}, {y1} (thousandths of width and height)?"
TOLERANCE_HU = 10.0
SHAPE = (108, 256, 256)  # slices from inferior, rows from posterior, columns
SPACING_MM = (0.957, 0.957)  # (row, column)
_ENTRIES: dict[Split, str] = {"train": "head-ct-train", "held_out": "head-ct-held-out"}
_SLICES: dict[Split, tuple[int, int]] = {"train": (10, 56), "held_out": (60, 100)}
_SIDE_PX = (6, 16)
_SOFT_HU = (-10.0, 70.0)
_MAX_DEVIATION_HU = {True: 25.0, False: 90.0}  # of soft tissue, of others: a pixel at the border changes little
_MIN_HU = -200.0  # of a patch: not the air around the head


@cache
def load_head_ct(split: Split) -> np.ndarray:
    """Load the CT in Hounsfield units, int16 [108, 256, 256], anterior up."""
    entry = find_entry(_ENTRIES[split])
    with tarfile.open(entry.locate()) as archive:
        members = [member for member in archive.getmembers() if member.name.endswith("/matrix.dat")]
        file = archive.extractfile(members[0]) if members else None
        if file is None:
            raise DataError(f"data.source: {entry.file} of {entry.package} holds no matrix.dat")
        values = np.frombuffer(file.read(), dtype="<i2").reshape(SHAPE)
    return values[:, ::-1]


def draw_patch_record(rng: np.random.Generator, split: Split, index: int, task_id: str) -> TaskRecord:
    """Draw a slice and a patch that is about even, and ask for its mean."""
    volume = load_head_ct(split)
    while True:
        values = volume[int(rng.integers(*_SLICES[split]))]
        width, height = (int(side) for side in rng.integers(*_SIDE_PX, 2))
        x0, y0 = int(rng.integers(40, SHAPE[2] - 40 - width)), int(rng.integers(40, SHAPE[1] - 40 - height))
        patch = values[y0 : y0 + height, x0 : x0 + width].astype(np.float64)
        wants_soft = index % 3 == 0  # the others are fat and bone: no one number is right for most
        low, high = _SOFT_HU
        is_soft = low < patch.mean() < high
        if patch.mean() > _MIN_HU and is_soft == wants_soft and patch.std() <= _MAX_DEVIATION_HU[wants_soft]:
            break
    ref, blobs = encode_values(np.ascontiguousarray(values), spacing_mm=SPACING_MM, modality="CT")
    scale = 1000 / SHAPE[1]
    box = (x0, y0, x0 + width, y0 + height)
    corners = dict(zip(("x0", "y0", "x1", "y1"), (round(value * scale) for value in box), strict=True))
    return TaskRecord(
        task=Task(
            task_id=task_id,
            family=FAMILY,
            question=QUESTION.format(**corners),
            images=(ref,),
            answer_kind="number",
            unit="HU",
            metadata={"source": _ENTRIES[split], "synthetic_insert": False},
        ),
        reference=Reference(
            task_id=task_id,
            answer=f"{patch.mean():.1f}",
            absolute_tolerance=TOLERANCE_HU,
            regions=np.array([box], dtype=np.float32),
        ),
        blobs=blobs,
    )
