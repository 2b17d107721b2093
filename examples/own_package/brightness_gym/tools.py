"""A tool that measures instead of drawing. It runs in a worker process that is killed at its deadline."""

from medvista_ray.errors import ToolArgumentError
from medvista_ray.tools.base import IMAGE_INDEX, Tool, ToolOutput
from medvista_ray.tools.coordinates import BOX, read_box


class Brightness(Tool):
    """Mean grey level of a box."""

    name = "brightness"
    description = "Measure the mean grey level (0 to 255) of a box [x0, y0, x1, y1], 0 to 1000 of width and height."
    parameters = {
        "type": "object",
        "properties": {"bbox": dict(BOX), "image": dict(IMAGE_INDEX)},
        "required": ["bbox"],
        "additionalProperties": False,
    }

    def run(self, arguments, context):
        """Return a text such as `87`."""
        image = context.image(arguments.get("image", 0))
        x0, y0, x1, y1 = (round(value) for value in read_box(arguments["bbox"], "thousandths", image.record))
        part = image.pixels()[y0:y1, x0:x1]
        if part.size == 0:
            raise ToolArgumentError("the box is smaller than one pixel")
        return ToolOutput(text=f"{part.mean():.0f}")
