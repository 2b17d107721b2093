"""A data set of your own: a folder with tasks.jsonl and images. Use it with data.source=my_data.

python examples/own_data.py my_data            questions with choices
python examples/own_data.py my_shapes --shapes boxes to find, and masks to outline
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from medvista_ray.data.folder import FolderTaskSource
from medvista_ray.images.codec import encode_png

SIDE_PX = 96


def write_questions(folder: Path, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Write noise, bright or dark; put your own images, questions and answers here."""
    for split, count in (("train", 32), ("held_out", 8)):
        for number in range(count):
            is_bright = bool(rng.random() < 0.5)
            name = f"{split}-{number}.png"
            pixels = rng.integers(0, 100, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8) + np.uint8(100 * is_bright)
            (folder / name).write_bytes(encode_png(pixels))
            yield {
                "task_id": f"{split}-{number}",
                "split": split,
                "family": "brightness",
                "question": "Is the image bright or dark?",
                "images": [name],
                "choices": ["bright", "dark"],
                "answer": "bright" if is_bright else "dark",
                "patient": f"{split}-{number // 2}",  # a pseudonym; nobody may be in both splits
            }


def write_shapes(folder: Path, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Write a bright rectangle over noise: one task to find it with a box, one to outline it."""
    for split, count in (("train", 16), ("held_out", 4)):
        for number in range(count):
            x0, y0, width, height = (int(value) for value in rng.integers(16, SIDE_PX // 2, 4))
            x1, y1 = x0 + width, y0 + height
            mask = np.zeros((SIDE_PX, SIDE_PX), dtype=np.uint8)
            mask[y0:y1, x0:x1] = 1
            pixels = rng.integers(0, 100, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8) + 150 * mask[..., None]
            image_name, mask_name = f"{split}-{number}.png", f"{split}-{number}-mask.png"
            (folder / image_name).write_bytes(encode_png(pixels))
            (folder / mask_name).write_bytes(encode_png(mask))
            shared = {"split": split, "images": [image_name], "patient": f"{split}-{number}"}
            yield {
                **shared,
                "task_id": f"{split}-{number}-box",
                "family": "find",
                "question": "Where is the bright rectangle?",
                "boxes": [[x0, y0, x1, y1]],
            }
            yield {
                **shared,
                "task_id": f"{split}-{number}-mask",
                "family": "outline",
                "question": "Outline the bright rectangle.",
                "mask": mask_name,
            }


def main(folder: Path, *, shapes: bool) -> None:
    """Write a folder and read it back."""
    folder.mkdir(parents=True, exist_ok=True)
    write = write_shapes if shapes else write_questions
    lines = [json.dumps(task) for task in write(folder, np.random.default_rng(0))]
    (folder / "tasks.jsonl").write_text("\n".join(lines) + "\n")
    tasks = FolderTaskSource(folder, "train")
    print(f"{len(tasks)} training tasks; the first: {tasks[0].task.question}")


if __name__ == "__main__":
    words = sys.argv[1:]
    main(Path(next((word for word in words if word != "--shapes"), "my_data")), shapes="--shapes" in words)
