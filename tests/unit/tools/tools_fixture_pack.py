"""Tools of a third party, for tests: loaded by `tools_fixture_pack:Class` in workers."""

import os
import time

import numpy as np

from medvista_ray.errors import ToolArgumentError
from medvista_ray.tools.base import IMAGE_INDEX, Picture, Tool, ToolCost, ToolOutput

ANYTHING = {"type": "object"}


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
        if kind == "wrong_image":
            return ToolOutput(images=(Picture(pixels=np.zeros((4, 4), np.float32), parent=0),))
        if kind == "wrong_parent":
            return ToolOutput(images=(Picture(pixels=np.zeros((4, 4), np.uint8), parent=77),))
        if kind == "line":
            return ToolOutput(images=(Picture(pixels=np.zeros((1, 4000), np.uint8), parent=0),))
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
    description = "Writes to stdout, says it is inline, starts a child."
    parameters = ANYTHING
    cost = ToolCost.INLINE

    def run(self, arguments, context):
        print("noise on stdout")
        return ToolOutput(text=str(os.getpid()))


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
