"""Two gloo ranks against one, in spawned processes."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from learner_batches import make_shards
from learner_ranks import run_rank
from safetensors.torch import load_file

from medvista_ray.types.samples import TrainingSample

Parts = list[list[list[TrainingSample]]]  # batch -> rank -> samples


def train(
    folder: Path, policy_folder: Path, parts: Parts, images: dict[str, bytes], **changes: object
) -> tuple[list[list[dict[str, float]]], dict[str, dict[str, torch.Tensor]]]:
    """Run as many ranks as the batches have parts; return their metrics and rank 0's weights by moment."""
    folder.mkdir()
    world_size = len(parts[0])
    batches = [make_shards(ranks) for ranks in parts]
    needed = [
        {span.digest: images[span.digest] for ranks in parts for s in ranks[rank] for span in s.image_spans}
        for rank in range(world_size)
    ]
    arguments = (world_size, str(policy_folder), batches, needed, str(folder), changes)
    if world_size == 1:
        run_rank(0, *arguments)
    else:
        _spawn_ranks(world_size, arguments, folder)
    metrics = [json.loads((folder / f"metrics-{rank}.json").read_text()) for rank in range(world_size)]
    moments = ("before", "moved", "restored", "again")
    return metrics, {name: load_file(folder / f"{name}.safetensors") for name in moments}


def _spawn_ranks(world_size: int, arguments: tuple[object, ...], folder: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=run_rank, args=(rank, *arguments)) for rank in range(world_size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        if process.exitcode is None:
            process.kill()
    errors = [path.read_text() for path in sorted(folder.glob("error-*.txt"))]
    assert not errors, errors[0]
    assert [process.exitcode for process in processes] == [0] * world_size


def split_by_images(samples: Sequence[TrainingSample]) -> list[list[TrainingSample]]:
    """Rank 0 gets every sample with an image, rank 1 the text."""
    return [[s for s in samples if s.image_spans], [s for s in samples if not s.image_spans]]


def test_two_ranks_train_as_one(samples, images, policy_folder: Path, tmp_path: Path) -> None:
    """Three batches: only one rank holds images; one rank holds nothing; shared (more microbatches on one rank)."""
    two: Parts = [split_by_images(samples), [[], samples], [samples[:1], samples[1:]]]
    one: Parts = [[[s for rank in ranks for s in rank]] for ranks in two]
    metrics_two, weights_two = train(tmp_path / "two", policy_folder, two, images, kl_coefficient=0.1)
    metrics_one, weights_one = train(tmp_path / "one", policy_folder, one, images, kl_coefficient=0.1)

    assert metrics_two[0] == metrics_two[1]
    for of_two, of_one in zip(metrics_two[0], metrics_one[0], strict=True):
        for key in of_one.keys() - {"learner/microbatches/count", "learner/padding/share"}:
            assert of_two[key] == pytest.approx(of_one[key], rel=1e-5, abs=1e-5), key
    assert metrics_one[0][1]["learner/grad_norm/l2"] > 0.1
    assert weights_two["before"].keys() == weights_one["before"].keys()
    for name, tensor in weights_one["before"].items():
        torch.testing.assert_close(weights_two["before"][name], tensor, rtol=0, atol=1e-5, msg=name)

    for weights in (weights_two, weights_one):  # a checkpoint goes on bit for bit
        for name, tensor in weights["before"].items():
            assert torch.equal(weights["restored"][name], tensor), name
            assert torch.equal(weights["again"][name], weights["moved"][name]), name
        assert any(not torch.equal(weights["moved"][name], tensor) for name, tensor in weights["before"].items())
