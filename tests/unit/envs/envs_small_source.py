"""A small task source for tests of the env: one 8-bit and one 16-bit image a task."""

import numpy as np

from medvista_ray.images.codec import encode_npy, encode_png, make_ref
from medvista_ray.types.messages import NPY_MIME, PNG_MIME, Choice, Reference, Task
from medvista_ray.types.protocols import TaskRecord

CHOICES = tuple(Choice(choice_id=letter, text=letter) for letter in "LTXJ")


class SmallSource:
    """Four closed tasks over random images."""

    def __init__(self, *, answers="LTXJ", choices=CHOICES, reference=None):
        self._answers = answers
        self._choices = choices
        self._reference = reference

    def __len__(self):
        return len(self._answers)

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        png = encode_png(rng.integers(0, 256, size=(90, 120, 3), dtype=np.uint8))
        npy = encode_npy(rng.integers(-1000, 3000, size=(60, 84)).astype(np.int16))
        images = (
            make_ref(png, mime=PNG_MIME, width=120, height=90),
            make_ref(npy, mime=NPY_MIME, width=84, height=60, spacing_mm=(0.5, 0.25), modality="CT"),
        )
        task = Task(
            task_id=f"small-{index}", family="zoom", question="Which letter?", images=images, choices=self._choices,
            metadata={"synthetic_insert": True},
        )  # fmt: skip
        reference = self._reference or Reference(task_id=task.task_id, answer=self._answers[index])
        return TaskRecord(task=task, reference=reference, blobs={images[0].digest: png, images[1].digest: npy})
