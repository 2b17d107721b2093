"""Build a tiny policy folder: a real Qwen-VL architecture of 1-2 M parameters with its own byte-level BPE tokenizer.

The result is an ordinary Hugging Face folder with random weights. Knows nothing of tasks or tools: the caller hands in
the text that the tokenizer should be short on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medvista_ray.policy import torchvision_shim

PATCH_PX = 14
MERGE = 2
VIEW_PX = 84  # 3 x 3 visual tokens
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
MARKER_TOKENS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<answer>",
    "</answer>",
)
# The Qwen2 pattern, except that up to three digits stay together: coordinates run from 0 to 1000.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{%- macro render(content) -%}{%- if content is string -%}{{- content -}}{%- else -%}{%- for item in content -%}"
    "{%- if item.type == 'image' or 'image' in item -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif 'text' in item -%}{{- item.text -}}{%- endif -%}{%- endfor -%}{%- endif -%}{%- endmacro -%}"
    "{%- for message in messages -%}{%- if message.role == 'tool' -%}"
    "{{- '<|im_start|>user\\n<tool_response>\\n' + render(message.content) + '\\n</tool_response><|im_end|>\\n' -}}"
    "{%- else -%}{{- '<|im_start|>' + message.role + '\\n' + render(message.content) + '<|im_end|>\\n' -}}"
    "{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def build_tokenizer(corpus: Sequence[str], plain_tokens: Sequence[str], *, vocab_size: int = 560) -> Any:
    """Train a byte-level BPE on the corpus; `plain_tokens` are long pieces of calls kept as one (non-special) token."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(corpus), trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in MARKER_TOKENS])
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in plain_tokens])
    return tokenizer


def _text_config(vocab_size: int, pad_id: int, *, interleaved: bool) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]}
    if interleaved:
        rope["mrope_interleaved"] = True
    return {
        "vocab_size": vocab_size,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "initializer_range": 0.06,
        "rope_parameters": rope,
        "tie_word_embeddings": False,
        "pad_token_id": pad_id,
    }


def _make_config(family: str, tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen3VLConfig

    ids = {text: tokenizer.token_to_id(text) for text in SPECIAL_TOKENS}
    shared = {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": False,
    }
    text = _text_config(tokenizer.get_vocab_size(), ids["<|endoftext|>"], interleaved=family == "qwen3_vl")
    vision: dict[str, Any] = {
        "depth": 3,
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_heads": 3,
        "patch_size": PATCH_PX,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "out_hidden_size": 128,
        "initializer_range": 0.06,
    }
    if family == "qwen3_vl":
        grid = VIEW_PX // PATCH_PX
        vision |= {"num_position_embeddings": grid * grid, "deepstack_visual_indexes": [1]}
        return Qwen3VLConfig(text_config=text, vision_config=vision, **shared)
    vision |= {"window_size": 112, "fullatt_block_indexes": [0, 1, 2]}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **shared)


def build_tiny_policy(
    folder: Path,
    *,
    family: str = "qwen3_vl",
    seed: int = 0,
    corpus: Sequence[str] = (),
    plain_tokens: Sequence[str] = (),
) -> Path:
    """Write a policy folder with random weights (initial range 0.06) and return it.

    Views of 84 x 84 px make 3 x 3 visual tokens; the processor accepts 28 x 28 up to 112 x 112 px.
    """
    torchvision_shim.install()
    import torch
    from transformers import (
        AutoModelForImageTextToText,
        PreTrainedTokenizerFast,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    tokenizer = build_tokenizer(corpus, plain_tokens)
    config = _make_config(family, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = tokenizer.token_to_id("<|im_end|>")
    model.generation_config.pad_token_id = tokenizer.token_to_id("<|endoftext|>")
    model.save_pretrained(folder)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=[text for text in SPECIAL_TOKENS if text not in ("<|im_end|>", "<|endoftext|>")],
    )
    size = {"shortest_edge": 28 * 28, "longest_edge": 112 * 112}
    image_processor = Qwen2VLImageProcessor(patch_size=PATCH_PX, merge_size=MERGE, temporal_patch_size=2, size=size)
    video_class, processor_class = (
        (Qwen3VLVideoProcessor, Qwen3VLProcessor)
        if family == "qwen3_vl"
        else (Qwen2VLVideoProcessor, Qwen2_5_VLProcessor)
    )
    video_processor = video_class(patch_size=PATCH_PX, merge_size=MERGE, temporal_patch_size=2)
    processor = processor_class(
        image_processor=image_processor, tokenizer=fast, video_processor=video_processor, chat_template=CHAT_TEMPLATE
    )
    processor.save_pretrained(folder)
    _check_template_is_saved(folder)
    return folder


def _check_template_is_saved(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    if not (folder / "chat_template.jinja").exists() and "chat_template" not in config:
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
