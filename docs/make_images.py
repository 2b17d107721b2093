"""Draw the pictures of the documentation from the demo set: what the policy is shown, before and after a tool call.

    python docs/make_images.py

Writes docs/images/trajectory.png; the same seed gives the same bytes.
"""

import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medvista_ray.coldstart.expert import plan_expert
from medvista_ray.config.load import load_config
from medvista_ray.data.sources import make_task_source
from medvista_ray.envs.medical_vqa import MedicalVQAEnv

HERE = Path(__file__).parent
GAP, LINE_PX, SIDE_PX, WRAP = 12, 15, 252, 74
ITEMS = (("zoom", 5), ("window", 2))  # family and index of a held-out item
COLOURS = 48


def play(family: str, index: int) -> tuple[str, list[str], list[np.ndarray], str]:
    """Play one held-out item as the expert that always looks at the right place; return what was said and shown."""
    config = load_config([HERE.parent / "configs" / "demo.yaml"])
    tasks = make_task_source("demo", "held_out", families=(family,), weights=(1.0,), num_tasks=index + 1, seed=0)
    record = tasks[index]
    actions = plan_expert(
        record.task, record.reference, right_share=1.0, second_look_share=0.0, rng=np.random.default_rng(0)
    )
    env = MedicalVQAEnv(tasks=tasks, config=config.env)
    observation, _ = env.reset(options={"task_index": index})
    views, info = list(observation["images"]), {}
    for action in actions:
        observation, reward, _, _, info = env.step(action)
        views.extend(observation["images"])
    env.close()
    levels = ", ".join(f"{name} {value:g}" for name, value in info["reward_breakdown"].items())
    return record.task.question, list(actions), views, f"reward {reward:g}: {levels}"


def draw_row(family: str, index: int) -> Image.Image:
    """Draw one episode: the first view, what the tool returned, and the words between them."""
    question, actions, views, reward = play(family, index)
    font = ImageFont.load_default(size=12)
    said = [f"user: <image 0> {question}", *(f"policy: {action}" for action in actions), reward]
    lines = [line for text in said for line in textwrap.wrap(text, WRAP, subsequent_indent="    ")]
    row = Image.new("RGB", (2 * SIDE_PX + GAP, SIDE_PX + LINE_PX * (len(lines) + 1) + 8), "white")
    draw = ImageDraw.Draw(row)
    for number, view in enumerate(views):
        left = number * (SIDE_PX + GAP)
        row.paste(Image.fromarray(view).resize((SIDE_PX, SIDE_PX), Image.Resampling.NEAREST), (left, LINE_PX))
        caption = "the first view" if number == 0 else "what the tool shows"
        draw.text((left, 0), f"image {number}: {caption}", "black", font)
    for number, line in enumerate(lines):
        draw.text((0, SIDE_PX + LINE_PX * (number + 1) + 4), line, "black", font)
    return row


def main() -> None:
    """Write the pictures."""
    rows = [draw_row(family, index) for family, index in ITEMS]
    width = max(row.width for row in rows)
    page = Image.new("RGB", (width, sum(row.height + GAP for row in rows)), "white")
    top = 0
    for row in rows:
        page.paste(row, (0, top))
        top += row.height + GAP
    (HERE / "images").mkdir(exist_ok=True)
    page.quantize(COLOURS, dither=Image.Dither.NONE).save(HERE / "images" / "trajectory.png", optimize=True)


if __name__ == "__main__":
    main()
