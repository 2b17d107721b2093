"""Tools of a third party, for tests: loaded by `tools_fixture_pack:Class` in workers."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from medvista_ray.errors import ToolArgumentError
from medvista_ray.tools.base import IMAGE_INDEX, Picture, Slice, SlicePlace, Tool, ToolCost, ToolOutput
from medvista_ray.tools.views import View
from medvista_ray.types.messages import VolumeRef

ANYTHING = {"type": "object"}
PIXELS = np.zeros((20, 20, 3), np.uint8)
PLACE = SlicePlace(
    volume=VolumeRef(digest="1" * 64, shape=(2, 2, 2), spacing_mm=(1.0, 1.0, 1.0)), plane="axial", index=0
)
BAD_IMAGES = {
    "wrong_image": Picture(pixels=np.zeros((4, 4), np.float32), parent=0),
    "wrong_parent": Picture(pixels=np.zeros((4, 4), np.uint8), parent=77),
    "line": Picture(pixels=np.zeros((1, 4000), np.uint8), parent=0),
    "empty": Picture(pixels=np.zeros((0, 4, 3), np.uint8), parent=0),
    "list_mask": Picture(pixels=PIXELS, parent=0, mask=[[True]]),
    "no_parent": Picture(pixels=PIXELS, parent=None),
    "list_transform": Picture(pixels=PIXELS, parent=0, to_parent=[1, 0, 0, 0, 1, 0]),
    "text_view": View(source_index="0"),
    "object_slice": Slice(values=np.array([[1, 2], [3, 4]], dtype=object), spacing_mm=(1.0, 1.0), place=PLACE),
    "foreign_slice": Slice(values=np.zeros((20, 20), np.int16), spacing_mm=(1.0, 1.0), place=PLACE),
}


class Invert(Tool):
    name = "invert"
    description = "Show an image with dark and bright exchanged."
    parameters = {"type": "object", "properties": {"image": dict(IMAGE_INDEX)}, "additionalProperties": False}  # noqa: RUF012

    def run(self, arguments, context):
        image = context.image(arguments.get("image", 0))
        return ToolOutput(images=(Picture(pixels=255 - image.pixels(), parent=image.index),))


class Raises(Tool):
    name = "raises"
    description = "Fails."
    parameters = ANYTHING

    def run(self, arguments, context):
        kind = arguments.get("kind", "value")
        if kind == "value":
            raise ValueError("boom \ud800" + "x" * 10_000)
        if kind == "exit":
            raise SystemExit(3)
        if kind == "argument":
            raise ToolArgumentError("nonsense")
        if kind == "import":
            import a_package_that_is_not_there  # noqa: F401
        if kind == "wrong_type":
            return "text"
        if kind == "no_images":
            return ToolOutput(images=None)
        if kind == "unknown_digest":
            context.image(0)._load("0" * 64)
        if kind in BAD_IMAGES:
            return ToolOutput(images=(BAD_IMAGES[kind],))
        return ToolOutput(text="fine")


class Hangs(Tool):
    name = "hangs"
    description = "Sleeps."
    parameters = ANYTHING
    deadline_s = 0.3

    def run(self, arguments, context):
        time.sleep(600)
        return ToolOutput()


class Dies(Tool):
    name = "dies"
    description = "Takes its process with it, each time or the first time only."
    parameters = ANYTHING

    def run(self, arguments, context):
        if arguments.get("always") or context.key.attempt == 0:
            os._exit(9)
        return ToolOutput(text=f"{context.key.trajectory}/{context.key.turn}/{context.key.attempt}")


class Prints(Tool):
    name = "prints"
    description = "Writes to stdout, says it is inline."
    parameters = ANYTHING
    cost = ToolCost.INLINE

    def run(self, arguments, context):
        print("noise on stdout")
        return ToolOutput(text=str(os.getpid()))


class StartsChild(Tool):
    name = "starts_child"
    description = "Starts a process, writes its id into a file, and hangs."
    parameters = ANYTHING
    deadline_s = 1.0

    def run(self, arguments, context):
        child = subprocess.Popen(["sleep", "600"])
        Path(arguments["path"]).write_text(str(child.pid))
        time.sleep(600)
        return ToolOutput()


class Sleeps(Tool):
    name = "sleeps"
    description = "Sleeps for a while."
    parameters = ANYTHING

    def run(self, arguments, context):
        time.sleep(arguments["for_s"])
        return ToolOutput(text="slept")


class Headers(Tool):
    name = "headers"
    description = "Tells the headers of the images."
    parameters = ANYTHING

    def run(self, arguments, context):
        return ToolOutput(text=str([dict(record.header) for record in context.records]))


class OnlyHere(Tool):
    name = "only_here"
    description = "Can be made in the process of the env, and in no worker."
    parameters = ANYTHING

    def __init__(self):
        if sys.argv[0].endswith("worker.py"):
            raise RuntimeError("not here")

    def run(self, arguments, context):
        return ToolOutput(text="never")


class HangsAtStart(Tool):
    name = "hangs_at_start"
    description = "Loads for ever."
    parameters = ANYTHING

    def warm_up(self):
        time.sleep(600)

    def run(self, arguments, context):
        return ToolOutput(text="never")


class DiesAtStart(Tool):
    name = "dies_at_start"
    description = "Takes its process with it when it warms up."
    parameters = ANYTHING

    def warm_up(self):
        os._exit(9)

    def run(self, arguments, context):
        return ToolOutput(text="never")


class NumpyNumbers(Tool):
    name = "numpy_numbers"
    description = "Gives NumPy numbers where Python's belong."
    parameters = ANYTHING

    def run(self, arguments, context):
        picture = np.zeros((8, 8, 3), np.uint8)
        return ToolOutput(text="ok", images=(Picture(pixels=picture, parent=np.int64(0)),))


class ColdStart(Tool):
    name = "cold"
    description = "Needs a package when it warms up."
    parameters = ANYTHING

    def warm_up(self):
        import a_package_that_is_not_there  # noqa: F401

    def run(self, arguments, context):
        return ToolOutput(text="never")


class NoSchema(Tool):
    name = "no_schema"
    description = "Its parameters are no schema."
    parameters = {"type": "no such type"}  # noqa: RUF012

    def run(self, arguments, context):
        return ToolOutput()
