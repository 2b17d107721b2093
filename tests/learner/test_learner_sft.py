"""Supervised fine-tuning: the loss falls, the order is seeded, a resumed run ends with the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from learner_batches import as_trajectory, make_sample

from medvista_ray.config.schema import PolicyConfig, SFTConfig
from medvista_ray.errors import DataError
from medvista_ray.learner.sft import SFTStep, SupervisedTrainer
from medvista_ray.policy.loading import load_policy
from medvista_ray.types.trajectories import Trajectory


@pytest.fixture
def trajectories(images: dict[str, bytes], image_token_id: int) -> list[Trajectory]:
    """Return ten: with two images, with one, with none."""
    a, b, c, d = images
    shown = [(a, b), (c,), (), (d, a), (b,)] * 2
    return [
        as_trajectory(make_sample(member, digests=digests, image_token_id=image_token_id, seed=1))
        for member, digests in enumerate(shown)
    ]


@pytest.fixture
def make_trainer(policy_folder: Path, trajectories, images):
    def make(*, seed: int = 0, **changes: object) -> SupervisedTrainer:
        defaults = {"steps": 6, "batch_size": 4, "lr": 1e-3, "warmup_steps": 2, "num_threads": 1}
        return SupervisedTrainer(
            SFTConfig(**(defaults | changes)),  # type: ignore[arg-type]
            policy_config=PolicyConfig(path=str(policy_folder), device="cpu"),
            trajectories=trajectories,
            images=images,
            seed=seed,
        )

    return make


def run(trainer: SupervisedTrainer) -> list[SFTStep]:
    steps: list[SFTStep] = []
    trainer.run(on_step=steps.append)
    return steps


def export(trainer: SupervisedTrainer, folder: Path) -> bytes:
    trainer.export(folder)
    return (folder / "model.safetensors").read_bytes()


def test_the_loss_falls_and_the_schedule_is_the_configured_one(make_trainer) -> None:
    steps = run(make_trainer(steps=25, batch_size=10, lr=2e-3, min_lr_ratio=0.1))
    assert steps[0].loss > 5.0
    assert steps[-1].loss < 0.4 * steps[0].loss
    assert [step.step for step in steps] == list(range(1, 26))
    assert steps[0].lr == pytest.approx(1e-3)
    assert max(step.lr for step in steps) == steps[1].lr == pytest.approx(2e-3)
    assert steps[-1].lr == pytest.approx(2e-4)


def test_the_first_loss_is_the_mean_over_action_tokens(make_trainer, trajectories, images, policy_folder) -> None:
    """Text-only trajectories through the stock model: plain cross-entropy at temperature 1."""
    model = load_policy(policy_folder, device="cpu").model
    text = [trajectory for trajectory in trajectories if not trajectory.image_spans]
    total, count = 0.0, 0
    for trajectory in text:
        ids = torch.tensor(trajectory.token_ids.tolist())[None]
        with torch.no_grad():
            logprobs = torch.log_softmax(model(input_ids=ids).logits[0].double(), -1)
        for position in np.flatnonzero(trajectory.loss_mask):
            total -= float(logprobs[position - 1, trajectory.token_ids[position]])
            count += 1
    trainer = SupervisedTrainer(
        SFTConfig(steps=1, batch_size=len(text), num_threads=1),
        policy_config=PolicyConfig(path=str(policy_folder), device="cpu"),
        trajectories=text,
        images={},
        seed=0,
    )
    (step,) = run(trainer)
    assert step.loss == pytest.approx(total / count, rel=1e-5)
    assert step.num_action_tokens == count


@pytest.mark.parametrize("changes", [{"num_threads": 2}, {"microbatch_tokens": 60}])
def test_threads_and_microbatches_change_no_more_than_rounding(make_trainer, changes) -> None:
    expected = run(make_trainer(lr=1e-4))
    found = run(make_trainer(lr=1e-4, **changes))
    for one, two in zip(expected, found, strict=True):
        assert two.loss == pytest.approx(one.loss, rel=1e-4)
        assert two.grad_norm == pytest.approx(one.grad_norm, rel=1e-3)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(make_trainer, tmp_path: Path) -> None:
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trainer = make_trainer(seed=seed, num_threads=2)
        run(trainer)
        files.append(export(trainer, tmp_path / name))
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_every_trajectory_is_seen_once_an_epoch(make_trainer, trajectories) -> None:
    trainer = make_trainer()
    seen = [index for step in range(5) for index in trainer._batch_indices(step)]
    assert sorted(seen[:10]) == sorted(seen[10:20]) == list(range(10))
    assert seen[:10] != seen[10:20]


def test_a_stopped_run_goes_on_to_the_same_weights(make_trainer, tmp_path: Path) -> None:
    class StopNowError(Exception):
        pass

    def stop_after_three(step: SFTStep) -> None:
        if step.step == 3:
            raise StopNowError

    through, first, second = make_trainer(), make_trainer(), make_trainer()
    run(through)
    with pytest.raises(StopNowError):
        first.run(on_step=stop_after_three)
    state = tmp_path / "state"
    state.mkdir()
    first.save_state(state)
    second.load_state(state)
    assert second.steps_done == 3
    assert [step.step for step in run(second)] == [4, 5, 6]
    assert export(second, tmp_path / "second") == export(through, tmp_path / "through")


def test_no_trajectory_is_an_error_that_says_so(policy_folder: Path) -> None:
    with pytest.raises(DataError, match="no trajectory"):
        SupervisedTrainer(
            SFTConfig(), policy_config=PolicyConfig(path=str(policy_folder)), trajectories=[], images={}, seed=0
        )
