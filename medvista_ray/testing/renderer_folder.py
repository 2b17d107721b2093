"""A policy folder without weights: a real byte-level BPE tokenizer and processor settings, enough for a renderer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from medvista_ray.policy.tiny import MERGE, PATCH_PX, VIEW_PX, build_tokenizer

CORPUS = ("Which letter is in the ring? I see it. Not visible.", '{"name":"zoom","arguments":{"bbox":[0,0,333,333]}}')


def write_renderer_folder(
    folder: Path, *, family: str = "qwen3_vl", plain_tokens: Sequence[str] = (), max_pixels: int = 112 * 112
) -> Path:
    """Write config.json, tokenizer.json and preprocessor_config.json; views of 84 x 84 px are 9 tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer(CORPUS, plain_tokens, vocab_size=400).save(str(folder / "tokenizer.json"))
    processor = {
        "patch_size": PATCH_PX,
        "merge_size": MERGE,
        "size": {"shortest_edge": (PATCH_PX * MERGE) ** 2, "longest_edge": max(max_pixels, VIEW_PX * VIEW_PX)},
    }
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder
