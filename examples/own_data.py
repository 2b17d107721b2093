"""A data set of your own: a folder with tasks.jsonl and images. Use it with data.source=my_data.

python examples/own_data.py my_data
"""

import json
import sys
from pathlib import Path

import numpy as np

from medvista_ray.data.folder import FolderTaskSource
from medvista_ray.images.codec import encode_png


def main(folder: Path) -> None:
    """Write a few tasks over noise; put your own images, questions and answers here."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    lines = []
    for split, count in (("train", 32), ("held_out", 8)):
        for number in range(count):
            is_bright = bool(rng.random() < 0.5)
            name = f"{split}-{number}.png"
            pixels = rng.integers(0, 100, (96, 96, 3), dtype=np.uint8) + np.uint8(100 * is_bright)
            (folder / name).write_bytes(encode_png(pixels))
            task = {
                "task_id": f"{split}-{number}",
                "split": split,
                "family": "brightness",
                "question": "Is the image bright or dark?",
                "images": [name],
                "choices": ["bright", "dark"],
                "answer": "bright" if is_bright else "dark",
            }
            lines.append(json.dumps(task))
    (folder / "tasks.jsonl").write_text("\n".join(lines) + "\n")
    tasks = FolderTaskSource(folder, "train")
    print(f"{len(tasks)} training tasks; the first: {tasks[0].task.question}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "my_data"))
