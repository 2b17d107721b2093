"""Our renderer against Hugging Face: the ids of the folder's own chat template, the sizes of the stock processor."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from PIL import Image

from medvista_ray.policy.image_processor import ImageProcessor
from medvista_ray.rendering.renderer import load_renderer
from medvista_ray.rendering.spans import collapse
from medvista_ray.types.messages import ImagePart, ImageRef, Message, TextPart

SIZES = ((84, 84), (56, 112), (90, 61), (300, 40))
CONVERSATIONS = (
    (("user", ("Which letter is in the ring?",)),),
    (("system", ("Tools: zoom, window_level.",)), ("user", (0, "Which letter is in the ring?"))),
    (("user", ("Compare ", 0, " with ", 1, ".\nAnswer in mm: 12.5 ± 3 µm, 北京")),),
    (("system", ("Be brief.",)), ("user", (0, "And now?")), ("tool", (1, "the box is shown"))),
    (("user", (0, 2, 3)), ("tool", ("no such tool",))),
)


def make_message(role, parts):
    made = [
        TextPart(text=part)
        if isinstance(part, str)
        else ImagePart(image=ImageRef(digest=f"{part:064x}", width=SIZES[part][0], height=SIZES[part][1]))
        for part in parts
    ]
    return Message(role=role, parts=tuple(made))


def make_template_message(role, parts):
    content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]
    return {"role": role, "content": content}


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_ids_equal_the_chat_template(policy_folders, family, conversation):
    from transformers import AutoProcessor

    folder = policy_folders[family]
    renderer = load_renderer(folder)
    assert renderer.family == family
    rendered = renderer.render_prompt([make_message(*message) for message in conversation])
    processor = AutoProcessor.from_pretrained(folder)
    text = processor.apply_chat_template(
        [make_template_message(*message) for message in conversation], tokenize=False, add_generation_prompt=True
    )
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert collapse(rendered.token_ids, rendered.image_spans).tolist() == ids
    pictures = [
        Image.fromarray(np.zeros((SIZES[part][1], SIZES[part][0], 3), np.uint8))
        for _, parts in conversation
        for part in parts
        if not isinstance(part, str)
    ]
    expanded = processor(text=[text], images=pictures or None)["input_ids"][0]
    assert rendered.token_ids.tolist() == list(expanded)


@pytest.mark.parametrize("settings", ["as saved", "size of a checkpoint", "min and max pixels"])
def test_image_length_equals_the_stock_processor(policy_folders, tmp_path, settings):
    folder = policy_folders["qwen3_vl"]
    processor_file = "preprocessor_config.json"
    source = folder / processor_file
    raw = json.loads((source if source.exists() else folder / "processor_config.json").read_text())
    raw = raw.get("image_processor", raw)
    if settings == "size of a checkpoint":
        raw |= {"size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}, "patch_size": 16}
    elif settings == "min and max pixels":
        raw |= {"size": {"shortest_edge": 1, "longest_edge": 10**9}, "min_pixels": 3136, "max_pixels": 200_000}
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / processor_file).write_text(json.dumps(raw))
    renderer, processor = load_renderer(tmp_path), ImageProcessor(tmp_path)
    draw = random.Random(0)
    sizes = [(draw.choice((1, 3, 14, 28, 41, 84, 85, 98, 250)), draw.randint(1, 300)) for _ in range(60)]
    sizes += [(height, width) for width, height in sizes] + [(14, 13), (13, 14), (42, 42), (200, 1), (2000, 10)]
    for width, height in sizes:
        if max(width, height) / min(width, height) > 200:
            continue  # both refuse
        prepared = processor.prepare([np.zeros((height, width, 3), np.uint8)])
        assert renderer.image_length(width, height) == prepared.num_features[0], (width, height)
