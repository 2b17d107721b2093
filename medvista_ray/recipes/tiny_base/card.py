"""The model card of the tiny base, written from its figures. Knows no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MEANINGS = {
    "where": "name the ninth of the image that holds the ring",
    "crop": "read the letter in a crop at full resolution",
    "crop_after_view": "the same, after the thumbnail",
    "crop_none": "say `none` for a crop without the letter",
    "two_turns": "both of the above in two turns",
    "window": "read the letter in the right window",
    "window_after_view": "the same, after the default window",
    "window_none": "say `none` under a wrong window",
    "structure": "the mixture of the next three",
    "plane": "name the plane of a brain slice",
    "modality": "name the modality",
    "quadrant": "name the quadrant of the ring",
    "repeat": "copy numbers",
}
_CARD = """# tiny_base

A Qwen3-VL of {millions:.2f} M parameters that can see what the demo of medvista_ray shows, and knows nothing of tools:
pre-trained on plain perception over the training split of the demo's images, with no tool call and no
`<think>`/`<answer>` protocol in it. Made for demonstration: it has no medical skill and must not be used on patients.

Made by `python -m medvista_ray.recipes.tiny_base` with seed {seed}: {dense} updates of the vision tower on dense labels
of its visual tokens, then {language} updates on questions, batches of {batch}; {minutes:.0f} min, {threads} thread(s).
SHA-256 of `model.safetensors`: `{sha256}`.

Exact answers on images of sources that were not trained on, {items} items of each kind:

| kind | task | right |
|---|---|---|
{rows}

These figures cap what reinforcement learning can reach. The sources are few; see docs/demo.md for their split.
Weights and code: Apache-2.0. The images come from installed packages and are not part of it.
"""


def write_card(figures: Mapping[str, Any]) -> str:
    """Write the card from `base_card.json`."""
    rows = [
        f"| {kind} | {_MEANINGS[kind]} | {accuracy:.3f} |" for kind, accuracy in figures["held_out_accuracy"].items()
    ]
    return _CARD.format(
        millions=figures["num_parameters"] / 1e6,
        seed=figures["seed"],
        dense=figures["steps"]["dense"],
        language=figures["steps"]["language"],
        batch=figures["batch_size"],
        minutes=figures["wall_s"] / 60,
        threads=figures["threads"],
        sha256=figures["sha256"],
        items=figures["held_out_items_per_kind"],
        rows="\n".join(rows),
    )
