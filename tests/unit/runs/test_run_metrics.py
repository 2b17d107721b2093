"""Metrics come back as they were written; torn lines, resumes and values that are no numbers included."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from medvista_ray.config.schema import RunConfig
from medvista_ray.runs.directory import RunDirectory
from medvista_ray.runs.metrics import MetricsWriter, read_metrics


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", RunConfig(), command="train")


def values_of(run: RunDirectory, key: str, label: str | None = None) -> list[tuple[int, float]]:
    return [(point.step, point.values[key]) for point in read_metrics(run, label)]


def test_metrics_round_trip_by_label(run: RunDirectory) -> None:
    with (
        MetricsWriter(run, "rl_tools", tensorboard=False) as one,
        MetricsWriter(run, "rl_no_tools", tensorboard=False) as two,
    ):
        one.write(1, {"rollout/reward/mean": 0.5})
        two.write(1, {"rollout/reward/mean": 0.25})
        one.write(2, {"rollout/reward/mean": 1})
    assert values_of(run, "rollout/reward/mean", "rl_tools") == [(1, 0.5), (2, 1.0)]
    assert len(read_metrics(run)) == 3


@pytest.mark.parametrize(
    "key", ["reward", "rollout/reward", "Rollout/reward/mean", "rollout//mean", "a b/c/d", "a/b /c", "a/b\nb/c", ""]
)
def test_a_key_is_stage_what_unit(run: RunDirectory, key: str) -> None:
    with MetricsWriter(run, "sft", tensorboard=False) as writer, pytest.raises(ValueError, match="stage/what/unit"):
        writer.write(1, {key: 1.0})


def test_names_of_users_may_stand_in_a_key(run: RunDirectory) -> None:
    key = "reward/Dice score (é)/mean"
    with MetricsWriter(run, "rl") as writer:
        writer.write(1, {key: 0.5})
    assert read_metrics(run)[0].values == {key: 0.5}


def test_a_value_that_is_no_number_stays_valid_json(run: RunDirectory) -> None:
    with MetricsWriter(run, "sft") as writer:
        writer.write(1, {"sft/loss/nats": math.nan, "sft/grad_norm/l2": math.inf, "sft/lr/ratio": 0.5})

    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    line = json.loads(run.metrics_path.read_text(), parse_constant=refuse)
    assert line["values"] == {"sft/loss/nats": None, "sft/grad_norm/l2": None, "sft/lr/ratio": 0.5}
    assert math.isnan(read_metrics(run)[0].values["sft/loss/nats"])


def test_a_torn_line_is_left_out_and_cut(run: RunDirectory) -> None:
    with MetricsWriter(run, "sft", tensorboard=False) as writer:
        writer.write(1, {"sft/loss/nats": 2.0})
    with run.metrics_path.open("a") as file:
        file.write('{"label": "sft", "st')
    assert values_of(run, "sft/loss/nats") == [(1, 2.0)]
    with MetricsWriter(run, "sft", tensorboard=False) as writer:
        writer.write(2, {"sft/loss/nats": 1.0})
    assert values_of(run, "sft/loss/nats") == [(1, 2.0), (2, 1.0)]


def test_steps_behind_a_checkpoint_count_once_after_a_resume(run: RunDirectory) -> None:
    with MetricsWriter(run, "rl", tensorboard=False) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"rollout/reward/mean": step})
    with MetricsWriter(run, "rl", tensorboard=False) as writer:
        writer.rewind(1)
        writer.write(2, {"rollout/reward/mean": 20})
    assert values_of(run, "rollout/reward/mean") == [(1, 1.0), (2, 20.0)]


def test_a_fresh_writer_leaves_other_labels_alone(run: RunDirectory) -> None:
    for label in ("sft", "rl"):
        with MetricsWriter(run, label) as writer:
            writer.write(0, {"a/b/c": 1})
    with MetricsWriter(run, "rl", fresh=True, tensorboard=False):
        pass
    assert [point.label for point in read_metrics(run)] == ["sft"]
    assert not run.tensorboard_path("rl").exists()


def test_tensorboard_reads_the_events(run: RunDirectory) -> None:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    with MetricsWriter(run, "rl") as writer:
        writer.write(3, {"rollout/reward/mean": 0.5, "learner/loss/nats": math.nan})
    (path,) = run.tensorboard_path("rl").glob("events.out.tfevents.*")
    events = [event for event in EventFileLoader(str(path)).Load() if event.HasField("summary")]
    found = [(event.step, value.tag, value.tensor.float_val[0]) for event in events for value in event.summary.value]
    assert found == [(3, "rollout/reward/mean", 0.5)]


def test_the_event_writer_needs_neither_torch_nor_tensorflow(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from medvista_ray.config.schema import RunConfig;"
        "from medvista_ray.runs.directory import RunDirectory; from medvista_ray.runs.metrics import MetricsWriter;"
        f"run = RunDirectory.create({str(tmp_path / 'run')!r}, RunConfig(), command='train');"
        "assert 'tensorboard' not in sys.modules;"
        "writer = MetricsWriter(run, 'rl'); writer.write(1, {'a/b/c': 1}); writer.close();"
        "assert not {'torch', 'tensorflow', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_steps_that_are_trained_again_replace_the_first_try(run: RunDirectory) -> None:
    key = "rollout/reward/mean"
    with MetricsWriter(run, "rl", tensorboard=False) as writer:
        for step in (1, 2, 3):
            writer.write(step, {key: float(step)})
        writer.write(2, {key: 20.0})  # the learner died and went on from step 1
    with MetricsWriter(run, "rl", tensorboard=False) as writer:
        writer.write(2, {key: 200.0})  # another process, from the same checkpoint
        writer.write(3, {key: 300.0})
    assert values_of(run, key, "rl") == [(1, 1.0), (2, 200.0), (3, 300.0)]
