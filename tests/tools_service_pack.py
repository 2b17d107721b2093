"""Service tools of a third party, for tests: loaded by `tools_service_pack:Class` in the processes of services."""

import os
import signal
import time

import numpy as np

from medvista_ray.errors import MissingPackageError, ToolArgumentError
from medvista_ray.tools.base import Picture, ServiceTool, Tool, ToolCost, ToolOutput

ANYTHING = {"type": "object"}
PIXELS = np.zeros((4, 4, 3), np.uint8)
BAD_IMAGES = {
    "list_mask": (Picture(pixels=PIXELS, parent=0, mask=[[True]]),),
    "no_parent": (Picture(pixels=PIXELS, parent=None),),
}


class Counts(ServiceTool):
    """Tells what it was called with: `pid/load number/size of the batch/attempt`."""

    name = "counts"
    description = "Tells how it runs."
    parameters = ANYTHING
    max_batch = 4
    batch_wait_s = 0.05
    loads = 0

    def warm_up(self):
        self.loads += 1

    def run_batch(self, calls):
        return [self._run_one(call, len(calls)) for call in calls]

    def _run_one(self, call, batch_size):
        arguments = call.arguments
        time.sleep(arguments.get("sleep_s", 0.0))
        if arguments.get("dies") == "always" or (arguments.get("dies") == "once" and call.context.key.attempt == 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if arguments.get("raises"):
            raise ValueError("boom")
        if arguments.get("nonsense"):
            return ToolArgumentError("nonsense")
        if "variables" in arguments:
            return ToolOutput(text=",".join(str(os.environ.get(name)) for name in arguments["variables"]))
        images = BAD_IMAGES.get(arguments.get("bad"), ())
        if "image" in arguments:
            image = call.context.image(arguments["image"])
            pixels = 255 - image.pixels()
            images = (Picture(pixels=pixels, parent=image.index, mask=np.ones(pixels.shape[:2], bool)),)
        return ToolOutput(text=f"{os.getpid()}/{self.loads}/{batch_size}/{call.context.key.attempt}", images=images)


class NotThere(ServiceTool):
    name = "not_there"
    description = "Needs a package."
    parameters = ANYTHING

    def warm_up(self):
        raise MissingPackageError("a_package is not installed: pip install 'medvista-ray[an_extra]'")

    def run_batch(self, calls):
        return [ToolOutput(text="never") for _ in calls]


class NeverStarts(ServiceTool):
    name = "never_starts"
    description = "Loads for ever."
    parameters = ANYTHING

    def warm_up(self):
        time.sleep(600)

    def run_batch(self, calls):
        return []


class SlowStart(ServiceTool):
    name = "slow_start"
    description = "Takes its time to load, then opens images."
    parameters = ANYTHING

    def warm_up(self):
        time.sleep(1.0)

    def run_batch(self, calls):
        for call in calls:
            for index in call.arguments.get("images", ()):
                call.context.image(index).pixels()
        return [ToolOutput(text="loaded") for _ in calls]


class Pretends(Tool):
    name = "pretends"
    description = "Has the cost of a service and no batches."
    parameters = ANYTHING
    cost = ToolCost.SERVICE

    def run(self, arguments, context):
        return ToolOutput()
