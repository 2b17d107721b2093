"""Fill the made parts of docs/tools/: arguments from the schemas, answers and pictures from the calls of each page.

    python docs/make_tool_pages.py [NAME ...]

The JSON blocks of a page are its calls. They are run in order on its image 0, through the same runner and shelf as in
an episode. Only the marks of the calls, and the captions, are drawn here.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from page_parts import DOCS, Panel, draw_row, fence, fill_parts, save_picture
from PIL import Image, ImageDraw

from medvista_ray.config.schema import EnvConfig
from medvista_ray.data.files import is_volume, read_volume
from medvista_ray.data.manifest import ManifestEntry, Split, load_manifest
from medvista_ray.data.scene import encode_pixels
from medvista_ray.data.us_frames import load_frame_texts, load_frames
from medvista_ray.images.codec import decode, make_ref
from medvista_ray.images.files import read_image_file
from medvista_ray.images.store import MemoryBlobCache
from medvista_ray.tools.base import CallKey, ImageRecord, Tool, ToolCost
from medvista_ray.tools.coordinates import read_box, read_point
from medvista_ray.tools.registry import BUILTIN_TOOLS, load_tool
from medvista_ray.tools.renderer import ViewRenderer
from medvista_ray.tools.runner import make_tool_runner
from medvista_ray.tools.shelf import ImageShelf
from medvista_ray.types.messages import Task
from medvista_ray.types.tool_calls import ToolCall, ToolOutcome

FOLDER, PICTURES = DOCS / "tools", DOCS / "images" / "tools"
VIEW_SIZE_PX, TIMEOUT_S = 420, 120.0
MARK_COLOUR = (255, 220, 0)
_IMAGE = re.compile(r"^Image 0: `(?P<file>[^`]+)` in (?P<package>[\w-]+)", re.MULTILINE)
_CALL = re.compile(r"^```json\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_BOX = re.compile(r"\[(\d+), (\d+), (\d+), (\d+)\]")  # of an answer, in thousandths
_DRAWN = ("bbox", "points", "image", "unit", "labels")  # arguments that are marks in a picture
_WHERE: Mapping[ToolCost, str] = {
    ToolCost.INLINE: "in the process of the env",
    ToolCost.POOLED: "in a worker process",
    ToolCost.SERVICE: "as a resident service",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Example:
    """The calls of a page and what they gave."""

    calls: Sequence[ToolCall]
    outcomes: Sequence[ToolOutcome]
    shelf: ImageShelf


def read_calls(page: str) -> list[ToolCall]:
    """Return the calls that a page shows."""
    return [ToolCall(**json.loads(text)) for text in _CALL.findall(page)]


def find_source(page: str) -> ManifestEntry:
    """Return the file that a page names as image 0; the manifest knows its digest."""
    match = _IMAGE.search(page)
    if match is None:
        raise ValueError("the page names no image: Image 0: `FILE` in PACKAGE")
    named = match["package"], match["file"]
    found = [entry for entry in load_manifest() if (entry.package, entry.file) == named]
    return next((entry for entry in found if entry.name in _frame_names(entry.split)), found[0])


def _frame_names(split: Split) -> list[str]:
    return [text.entry for text in load_frame_texts(split)]


def make_shelf(entry: ManifestEntry) -> ImageShelf:
    """Put a file on a shelf, as a task over it would; of an ultrasound frame names, dates and times are blanked."""
    blobs = MemoryBlobCache()
    path = entry.locate()
    if entry.name in _frame_names(entry.split):
        frame = next(frame for frame in load_frames(entry.split) if frame.text.entry == entry.name)
        ref, encoded = encode_pixels(frame.pixels, spacing_mm=frame.spacing_mm, modality=entry.modality)
        task, data = Task(task_id="page", family="page", question="", images=(ref,)), encoded[ref.digest]
    elif is_volume(path.name):
        data, volume = read_volume(path, modality=entry.modality)
        task = Task(task_id="page", family="page", question="", images=(), volumes=(volume,))
    else:
        file = read_image_file(path)
        data = file.data
        ref = make_ref(
            data,
            mime=file.mime,
            width=file.width,
            height=file.height,
            spacing_mm=file.spacing_mm,
            modality=file.modality,
        )
        headers = {ref.digest: file.header}
        task = Task(task_id="page", family="page", question="", images=(ref,), headers=headers)
    blobs.put(data)
    return ImageShelf(task, renderer=ViewRenderer(blobs, view_size_px=VIEW_SIZE_PX))


def run_example(page: str) -> Example:
    """Run the calls of a page."""
    calls, shelf = read_calls(page), make_shelf(find_source(page))
    runner = make_tool_runner(list(dict.fromkeys(call.name for call in calls)), timeout_s=TIMEOUT_S, num_workers=1)
    try:
        outcomes = [
            runner.run(call, shelf=shelf, key=CallKey(trajectory="page", turn=turn)) for turn, call in enumerate(calls)
        ]
    finally:
        runner.close()
    return Example(calls=calls, outcomes=outcomes, shelf=shelf)


def write_answers(example: Example) -> str:
    """Return what the calls answered, as a policy reads it."""
    lines, index = [], example.shelf.num_sources
    for outcome in example.outcomes:
        shown = [f"<image {index + place}>" for place in range(len(outcome.images))]
        index += len(shown)
        lines.append("\n".join(part for part in (*shown, outcome.text) if part))
    return "\n\n".join(lines)


def draw_example(example: Example) -> Image.Image:
    """Draw image 0, then what each call gave: its images, or its text."""
    panels = [Panel(caption="image 0: as it is shown first", pixels=_mark(_first_pixels(example.shelf), 0, example))]
    index, texts = example.shelf.num_sources, []
    for call, outcome in zip(example.calls, example.outcomes, strict=True):
        for image in outcome.images:
            pixels = decode(example.shelf.load(image.digest), image.mime)
            panels.append(Panel(caption=f"image {index}: {_describe_call(call)}", pixels=_mark(pixels, index, example)))
            index += 1
        if not outcome.images:
            texts.append(f"{_describe_call(call)}\n{outcome.text}")
    if texts:
        panels.append(Panel(caption="what is answered", text="\n\n".join(texts)))
    return draw_row(panels)


def _describe_call(call: ToolCall) -> str:
    """Return a call in short; what is drawn into a picture is left out."""
    said = (f"{name} {value}" for name, value in call.arguments.items() if name not in _DRAWN)
    return ", ".join((call.name, *said))


def _first_pixels(shelf: ImageShelf) -> np.ndarray:
    return shelf.first_view(0).pixels


def _mark(pixels: np.ndarray, index: int, example: Example) -> np.ndarray:
    """Draw the points and boxes of the calls that address an image, and the boxes of an answer without an image."""
    drawn = Image.fromarray(pixels)
    draw = ImageDraw.Draw(drawn)
    record = example.shelf.records[index]
    scale_x, scale_y = drawn.width / record.ref.width, drawn.height / record.ref.height
    for call, outcome in zip(example.calls, example.outcomes, strict=True):
        if call.arguments.get("image", 0) != index or "mask_of" in call.arguments:
            continue
        for found in () if outcome.images else _BOX.findall(outcome.text):
            x0, y0, x1, y1 = (int(side) for side in found)
            corners = x0 * drawn.width, y0 * drawn.height, x1 * drawn.width, y1 * drawn.height
            draw.rectangle([corner / 1000 for corner in corners], outline=MARK_COLOUR)
        points = [(x * scale_x, y * scale_y) for x, y in _points_of(call.arguments, record)]
        if "bbox" in call.arguments:
            draw.rectangle(points[:2], outline=MARK_COLOUR, width=2)
            points = points[2:]
        elif call.name == "measure":
            draw.line(points, fill=MARK_COLOUR, width=1)
        for x, y in points:
            draw.line((x - 5, y, x + 5, y), fill=MARK_COLOUR, width=2)
            draw.line((x, y - 5, x, y + 5), fill=MARK_COLOUR, width=2)
    return np.array(drawn)


def _points_of(arguments: Mapping[str, Any], record: ImageRecord) -> list[tuple[float, float]]:
    """Return the two corners of the box of a call, then its points, in pixels of the image."""
    unit = arguments.get("unit", "thousandths")
    points: list[tuple[float, float]] = []
    if "bbox" in arguments:
        x0, y0, x1, y1 = read_box(arguments["bbox"], unit, record)
        points += [(x0, y0), (x1, y1)]
    return points + [read_point(point, unit, record) for point in arguments.get("points", ())]


def describe_tool(tool: Tool) -> str:
    """Return the made facts of a tool: what a policy is told, where it runs, its arguments."""
    limit = f"{EnvConfig().tool_timeout_s:g} s, `env.tool_timeout_s`"
    if tool.deadline_s is not None:
        limit = f"{tool.deadline_s:g} s of its own, or `env.tool_timeout_s` where that is shorter"
    rows = ["| argument | value | |", "|---|---|---|"]
    needed = tool.parameters.get("required", ())
    for name, schema in tool.parameters["properties"].items():
        value = describe_value(schema) + (", required" if name in needed else "")
        rows.append(f"| `{name}` | {value} | {schema.get('description', '')} |".replace("  |", " |"))
    told = f"> {tool.description}"
    return "\n".join((told, "", f"It runs {_WHERE[tool.cost]} (`{tool.cost}`). Deadline: {limit}.", "", *rows))


def describe_value(schema: Mapping[str, Any]) -> str:
    """Say in words what values a schema allows."""
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema["type"]
    if kind == "array":
        low, high = schema.get("minItems"), schema.get("maxItems")
        count = "" if high is None else f" of {low}" if low == high else f" of {low or 0} to {high}"
        return f"list{count}: {describe_value(schema['items'])}"
    low = schema.get("minimum", schema.get("exclusiveMinimum", schema.get("minLength")))
    high = schema.get("maximum", schema.get("maxLength"))
    word = {"integer": "whole number", "number": "number", "string": "text"}[kind]
    of = " of characters" if kind == "string" else ""
    at_least = "above" if "exclusiveMinimum" in schema else "from"
    if low is None and high is None:
        return word
    return f"{word}{of}, {at_least} {low}" + ("" if high is None else f" to {high}")


def render_page(name: str) -> tuple[str, Image.Image]:
    """Return the page of a tool with its made parts filled in, and its picture."""
    page = (FOLDER / f"{name}.md").read_text()
    example = run_example(page)
    shown = f"![What the calls above showed](../images/tools/{name}.png)"
    answer = f"{fence(write_answers(example))}\n\n{shown}"
    return fill_parts(page, {"tool": describe_tool(load_tool(name)), "answer": answer}), draw_example(example)


def render_index() -> str:
    """Return the index of the tools with its made table."""
    rows = ["| tool | what a policy is told | runs |", "|---|---|---|"]
    for name in BUILTIN_TOOLS:
        tool = load_tool(name)
        rows.append(f"| [`{name}`]({name}.md) | {tool.description} | {_WHERE[tool.cost]} |")
    return fill_parts((FOLDER / "README.md").read_text(), {"tools": "\n".join(rows)})


def main(names: Sequence[str]) -> None:
    """Write pages and pictures."""
    for name in names or BUILTIN_TOOLS:
        text, picture = render_page(name)
        (FOLDER / f"{name}.md").write_text(text)
        save_picture(picture, PICTURES / f"{name}.png")
    index = Path(FOLDER / "README.md")
    index.write_text(render_index())


if __name__ == "__main__":
    main(sys.argv[1:])
