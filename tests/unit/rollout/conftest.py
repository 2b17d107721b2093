"""One renderer over a small tokenizer, and tools shared by all envs of these tests."""

from __future__ import annotations

import pytest

from medvista_ray.rendering.renderer import QwenRenderer, load_renderer
from medvista_ray.testing.renderer_folder import write_renderer_folder


@pytest.fixture(scope="session")
def renderer(tmp_path_factory) -> QwenRenderer:
    return load_renderer(write_renderer_folder(tmp_path_factory.mktemp("policy")))
