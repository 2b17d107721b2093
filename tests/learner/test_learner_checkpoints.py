"""The state of a rank on disk: exact continuation, and refusals that say why. Two ranks: test_learner_two_ranks.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from learner_batches import make_shards

from medvista_ray.errors import ConfigError
from medvista_ray.learner.rank import LearnerRank


def train(rank: LearnerRank, samples, images, *, steps: int) -> None:
    (shard,) = make_shards([samples])
    for _ in range(steps):
        rank.begin_batch(shard, images)
        rank.finish_batch()


def test_a_restored_rank_goes_on_bit_for_bit(make_rank, samples, images, tmp_path: Path) -> None:
    through, first, second = make_rank(warmup_steps=4), make_rank(warmup_steps=4), make_rank(warmup_steps=4)
    train(through, samples, images, steps=4)
    train(first, samples, images, steps=2)
    first.save_checkpoint(tmp_path)
    train(second, samples[:2], images, steps=1)  # whatever it did before is gone
    second.load_checkpoint(tmp_path)
    assert second.num_updates == 2
    train(second, samples, images, steps=2)
    expected, found = through.full_state_dict(), second.full_state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_checkpoint_before_the_first_update_restores(make_rank, samples, images, tmp_path: Path) -> None:
    fresh, other = make_rank(), make_rank()
    fresh.save_checkpoint(tmp_path)
    train(other, samples, images, steps=1)
    other.load_checkpoint(tmp_path)
    for rank in (fresh, other):
        train(rank, samples, images, steps=1)
    expected, found = fresh.full_state_dict(), other.full_state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_checkpoint_is_two_plain_files(make_rank, tmp_path: Path) -> None:
    make_rank().save_checkpoint(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank-0.json", "rank-0.safetensors"]


def test_another_number_of_ranks_is_refused(make_rank, tmp_path: Path) -> None:
    rank = make_rank()
    rank.save_checkpoint(tmp_path)
    header = json.loads((tmp_path / "rank-0.json").read_text())
    (tmp_path / "rank-0.json").write_text(json.dumps(header | {"world_size": 2}))
    with pytest.raises(ConfigError, match=r"learner\.world_size=2"):
        rank.load_checkpoint(tmp_path)


def test_an_empty_folder_is_refused(make_rank, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rank 0"):
        make_rank().load_checkpoint(tmp_path)


def test_another_model_is_refused_by_name(make_rank, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    rank = make_rank()
    rank.save_checkpoint(tmp_path)
    path = tmp_path / "rank-0.safetensors"
    tensors = load_file(path)
    tensors["model/lm_head.weight"] = tensors["model/lm_head.weight"][:, :-1].contiguous()
    save_file(tensors, path)
    before = rank.full_state_dict()
    with pytest.raises(ConfigError, match=r"lm_head\.weight"):
        rank.load_checkpoint(tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in rank.full_state_dict().items())
