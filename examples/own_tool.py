"""A tool of your own. Offer it with env.tools=[zoom,own_tool:Invert]; run this file to try it."""

import gymnasium

from medvista_ray.tools.base import IMAGE_INDEX, Picture, Tool, ToolOutput


class Invert(Tool):
    """Runs in a worker process that is killed at its deadline; errors become observations."""

    name = "invert"
    description = "Show an image with dark and bright exchanged."
    parameters = {"type": "object", "properties": {"image": dict(IMAGE_INDEX)}, "additionalProperties": False}

    def run(self, arguments, context):
        """Return the image with dark and bright exchanged."""
        image = context.image(arguments.get("image", 0))
        return ToolOutput(images=(Picture(pixels=255 - image.pixels(), parent=image.index),))


if __name__ == "__main__":  # workers import this file
    env = gymnasium.make("medvista_ray.envs:medvista/MedicalVQA-v0", tools=("zoom", "own_tool:Invert"))
    env.reset(seed=0)
    call = '<think>Too dark.</think><tool_call>{"name": "invert", "arguments": {"image": 0}}</tool_call>'
    observation, *_, info = env.step(call)
    print(info["tool_failure"], [image.shape for image in observation["images"]])
    env.close()
