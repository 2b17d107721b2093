"""Tiny random policies of both families, images, and requests, shared by the engine tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from medvista_ray.images.codec import encode_png
from medvista_ray.policy.image_processor import ImageProcessor, PreparedImages
from medvista_ray.policy.inputs import PolicyRow
from medvista_ray.policy.loading import FAMILIES, Policy, load_policy
from medvista_ray.policy.tiny import build_tiny_policy
from medvista_ray.types.trajectories import ImageSpan

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def policy_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        family: build_tiny_policy(tmp_path_factory.mktemp(family), family=family, seed=7, corpus=("read the letter",))
        for family in FAMILIES
    }


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def policy(policy_folders: dict[str, Path], family: str) -> Policy:
    return load_policy(policy_folders[family], device="cpu")


@pytest.fixture
def qwen3(policy_folders: dict[str, Path]) -> Policy:
    return load_policy(policy_folders["qwen3_vl"], device="cpu")


def make_images(count: int, *, seed: int = 0) -> dict[str, bytes]:
    """Return encoded views by digest, of three different sizes."""
    rng = np.random.default_rng(seed)
    sizes = ((84, 84), (56, 112), (90, 61))
    encoded = [encode_png(rng.integers(0, 255, (*sizes[i % 3], 3), dtype=np.uint8)) for i in range(count)]
    return {hashlib.sha256(data).hexdigest(): data for data in encoded}


def make_row(
    policy: Policy, prepared: dict[str, PreparedImages], digests: Sequence[str], *, texts: Sequence[int], seed: int
) -> PolicyRow:
    """Return a row of random text with an image between each two pieces; `texts` are their lengths."""
    rng = np.random.default_rng(seed)
    token_ids: list[int] = []
    spans: list[ImageSpan] = []
    for i, length in enumerate(texts):
        token_ids += rng.integers(8, policy.vocab_size, length).tolist()
        if i < len(digests):
            features = prepared[digests[i]].num_features[0]
            spans.append(ImageSpan(digest=digests[i], offset=len(token_ids), length=features))
            token_ids += [policy.image_token_id] * features
    return PolicyRow(token_ids=np.array(token_ids, np.int32), image_spans=tuple(spans))


@pytest.fixture
def images() -> dict[str, bytes]:
    return make_images(4)


@pytest.fixture
def prepare(images: dict[str, bytes]) -> Callable[[Policy], dict[str, PreparedImages]]:
    def prepare_for(policy: Policy) -> dict[str, PreparedImages]:
        return ImageProcessor(policy.folder).prepare_encoded(images, images)

    return prepare_for


@pytest.fixture
def rows(
    images: dict[str, bytes], prepare: Callable[[Policy], dict[str, PreparedImages]]
) -> Callable[[Policy], list[PolicyRow]]:
    """Return the maker of six rows: shared, repeated and no images, one image at the very end, different lengths."""

    def rows_for(policy: Policy) -> list[PolicyRow]:
        first, second, third, fourth = images
        cases = (
            ((first,), (5, 9)),
            ((first, second), (5, 9, 12)),
            ((), (17,)),
            ((third, first, fourth), (3, 4, 5, 6)),
            ((second,), (8,)),
            ((fourth, fourth), (1, 2, 30)),
        )
        prepared = prepare(policy)
        return [make_row(policy, prepared, ids, texts=texts, seed=i) for i, (ids, texts) in enumerate(cases)]

    return rows_for
