"""What preparing and opening a data set costs: peak memory at few and at many rows, rows a second.

python benchmarks/data.py --json data.json [--quick]
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from results import Result, parse_arguments, report

from medvista_ray.images.codec import encode_png

NUM_IMAGES = 2_000  # distinct ones, or as many as there are rows
PREPARE = """
from medvista_ray.data.prepare import prepare
prepare("slake", Path(sys.argv[1]), Path(sys.argv[2]))
"""
OPEN = """
from medvista_ray.data.folder import FolderTaskSource
tasks = FolderTaskSource(Path(sys.argv[2]), "train")
assert tasks[len(tasks) - 1].task.question
"""
MEASURE = """
import json, sys, time
from pathlib import Path
start = time.perf_counter()
{}
wall_s = time.perf_counter() - start
(peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]  # kiB
print(json.dumps([wall_s, int(peak) / 1024]))
"""


def write_source(folder: Path, *, num_rows: int, seed: int) -> None:
    """Write SLAKE with that many questions over small PNGs of noise."""
    rng = np.random.default_rng(seed)
    num_images = min(NUM_IMAGES, num_rows)
    for image in range(num_images):
        place = folder / "imgs" / f"xmlab{image}"
        place.mkdir(parents=True)
        (place / "source.png").write_bytes(encode_png(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    num_test_images = max(1, num_images // 10)
    halves = {"train": range(num_test_images, num_images), "validate": range(0), "test": range(num_test_images)}
    qid = 0
    for half, images in halves.items():
        count = num_rows * len(images) // num_images
        with (folder / f"{half}.json").open("w") as file:
            file.write("[")
            for row in range(count):
                item = {
                    "img_name": f"xmlab{images[row * len(images) // count]}/source.png",
                    "question": "Does the picture contain liver?",
                    "answer": "Yes",
                    "q_lang": "en",
                    "answer_type": "CLOSED",
                    "qid": qid,
                }
                file.write((",\n" if row else "") + json.dumps(item))
                qid += 1
            file.write("]")


def measure(code: str, *arguments: Path) -> tuple[float, float]:
    """Run code in a process of its own; return its seconds and its peak memory in MiB."""
    command = [sys.executable, "-c", MEASURE.format(code), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    wall_s, peak_mib = json.loads(done.stdout)
    return wall_s, peak_mib


def main() -> None:
    """Measure both sizes and print the table."""
    arguments = parse_arguments(__doc__ or "")
    few, many = (200, 20_000) if arguments.quick else (2_000, 200_000)
    results: list[Result] = []
    peaks: dict[tuple[str, int], float] = {}
    for num_rows in (few, many):
        with tempfile.TemporaryDirectory() as scratch:
            source, out = Path(scratch) / "source", Path(scratch) / "out"
            source.mkdir()
            write_source(source, num_rows=num_rows, seed=arguments.seed)
            for name, code in (("prepare", PREPARE), ("open", OPEN)):
                wall_s, peaks[name, num_rows] = measure(code, source, out)
                results.append(Result(metric=f"{name}_{num_rows}_s", value=wall_s, unit="s"))
                results.append(Result(metric=f"{name}_{num_rows}_peak_mib", value=peaks[name, num_rows], unit="MiB"))
                if num_rows == many:
                    results.append(Result(metric=f"{name}_rows_per_s", value=num_rows / wall_s, unit="rows/s"))
    ratio = peaks["prepare", many] / peaks["prepare", few]
    results.append(Result(metric="prepare_memory_ratio", value=ratio, unit="", bar=1.1, op="<="))
    growth = (peaks["open", many] - peaks["open", few]) * 2**20 / (many - few)
    results.append(Result(metric="open_bytes_per_row", value=growth, unit="bytes", bar=128, op="<="))
    report(results, title="data sets", seed=arguments.seed, path=arguments.json)


if __name__ == "__main__":
    main()
