"""A tiny policy, its images and batches, shared by the tests of the learner."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from learner_batches import make_images, make_sample

from medvista_ray.config.schema import LearnerConfig, PolicyConfig
from medvista_ray.learner.rank import LearnerRank
from medvista_ray.policy.tiny import build_tiny_policy
from medvista_ray.types.samples import TrainingSample
from medvista_ray.types.sampling import SamplingSpec


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_policy(tmp_path_factory.mktemp("tiny"), seed=5, corpus=("read the letter in the ring",))


@pytest.fixture(scope="session")
def image_token_id(policy_folder: Path) -> int:
    return int(json.loads((policy_folder / "config.json").read_text())["image_token_id"])


@pytest.fixture(scope="session")
def images() -> dict[str, bytes]:
    return make_images(4)


@pytest.fixture
def samples(images: dict[str, bytes], image_token_id: int) -> list[TrainingSample]:
    """Return six samples: two images, one image (twice the same), none."""
    a, b, c, _ = images
    shown = [(a, b), (a,), (), (a, c), (b,), ()]
    return [
        make_sample(member, digests=digests, image_token_id=image_token_id, reward=float(member % 2))
        for member, digests in enumerate(shown)
    ]


MakeRank = Callable[..., LearnerRank]


@pytest.fixture
def make_rank(policy_folder: Path) -> Iterator[MakeRank]:
    """Return a maker of ranks over the tiny policy; keywords are fields of `LearnerConfig`."""
    made: list[LearnerRank] = []

    def make(*, dtype: str = "float32", temperature: float = 0.7, **changes: object) -> LearnerRank:
        rank = LearnerRank(
            LearnerConfig(**({"lr": 1e-3, "warmup_steps": 0} | changes)),  # type: ignore[arg-type]
            policy_config=PolicyConfig(path=str(policy_folder), dtype=dtype, device="cpu"),  # type: ignore[arg-type]
            sampling=SamplingSpec(temperature=temperature, banned_token_ids=(3, 4, 5, 6)),
        )
        made.append(rank)
        return rank

    yield make
    for rank in made:
        rank.close()
