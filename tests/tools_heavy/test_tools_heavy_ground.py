"""The proposals of `ground` against the instance masks of real fluorescence nuclei (DSB2018, in the stardist wheel)."""

from __future__ import annotations

import re

import numpy as np
from PIL import Image

from medvista_ray.data.packages import locate_fetched, prepare_embedded
from medvista_ray.images.codec import make_ref
from medvista_ray.images.files import read_image_file
from medvista_ray.images.store import MemoryBlobCache
from medvista_ray.tools.base import CallKey
from medvista_ray.tools.ground import MOST_BOXES
from medvista_ray.tools.registry import load_tool
from medvista_ray.tools.renderer import ViewRenderer
from medvista_ray.tools.shelf import ImageShelf
from medvista_ray.types.messages import Task


def overlap(first, second):
    """Intersection over union of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (sum(areas) - width * height)


def count_matches(found, wanted):
    """Match each wanted box with at most one found box, in order."""
    free, count = list(found), 0
    for box in wanted:
        best = max(free, key=lambda other: overlap(box, other), default=None)
        if best is not None and overlap(box, best) >= 0.5:
            free.remove(best)
            count += 1
    return count


def test_nuclei_of_dsb2018():
    prepare_embedded()
    folder = locate_fetched("stardist", "stardist/data/images/img2d.tif").parent
    labels = np.asarray(Image.open(folder / "mask2d.tif"))
    wanted = []
    for number in np.unique(labels)[1:]:
        rows, columns = np.nonzero(labels == number)
        wanted.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    assert len(wanted) == 125

    file = read_image_file(folder / "img2d.tif")
    blobs = MemoryBlobCache()
    blobs.put(file.data)
    ref = make_ref(file.data, mime=file.mime, width=file.width, height=file.height)
    task = Task(task_id="t", family="f", question="q", images=(ref,))
    shelf = ImageShelf(task, renderer=ViewRenderer(blobs, view_size_px=512))
    output = load_tool("ground").run({"max_boxes": MOST_BOXES}, shelf.context(CallKey()))
    scale = np.array([file.width, file.height] * 2) / 1000
    lines = re.findall(r"\d+: \[(\d+), (\d+), (\d+), (\d+)\]", output.text)
    found = [tuple(np.array(line, float) * scale) for line in lines]
    f1 = 2 * count_matches(found, wanted) / (len(found) + len(wanted))
    print(f"{len(found)} proposals, {count_matches(found, wanted)} of {len(wanted)} nuclei, F1 at IoU 0.5: {f1:.3f}")
    assert f1 >= 0.8
