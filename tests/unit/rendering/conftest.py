"""One renderer of each family, over a small tokenizer."""

from __future__ import annotations

import pytest

from medvista_ray.rendering.renderer import QwenRenderer, load_renderer
from medvista_ray.testing.renderer_folder import write_renderer_folder

FAMILIES = ("qwen3_vl", "qwen2_5_vl")


@pytest.fixture(scope="session")
def renderers(tmp_path_factory) -> dict[str, QwenRenderer]:
    return {
        family: load_renderer(write_renderer_folder(tmp_path_factory.mktemp(family), family=family))
        for family in FAMILIES
    }


@pytest.fixture
def renderer(renderers) -> QwenRenderer:
    return renderers["qwen3_vl"]
