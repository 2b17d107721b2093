from pathlib import Path

import pytest

from medvista_ray.driver.checkpoint import (
    Border,
    DriverRecord,
    check_same_run,
    find_checkpoint,
    list_checkpoints,
    load_border,
    load_record,
    save_checkpoint,
)
from medvista_ray.errors import ConfigError, LearnerDiedError
from medvista_ray.testing.learner import ScriptedLearner


def make_border(version: int, *, incarnation: int = 0, snapshot: bytes = b"ledger") -> Border:
    record = DriverRecord(
        seed=7,
        num_tasks=12,
        group_size=2,
        policy_version=version,
        incarnation=incarnation,
        next_task=5,
        batch_ids=["b1"],
        counters={"buffer/staleness/max": 1.0},
        reader_cursor=(0, 9),
    )
    return Border(record=record, snapshot=snapshot)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def learner() -> ScriptedLearner:
    return ScriptedLearner(buffer=None)  # type: ignore[arg-type]


async def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path, learner: ScriptedLearner) -> None:
    border = make_border(50)
    path = await save_checkpoint(tmp_path, border, learner, keep_last=2)
    assert path == tmp_path / "step-000050"
    assert load_border(path) == border


async def test_only_the_newest_are_kept(tmp_path: Path, learner: ScriptedLearner) -> None:
    for version in (1, 2, 3):
        await save_checkpoint(tmp_path, make_border(version), learner, keep_last=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000002", "step-000003"]


async def test_a_crash_in_the_middle_leaves_the_one_before(tmp_path: Path, learner: ScriptedLearner) -> None:
    before = await save_checkpoint(tmp_path, make_border(1), learner, keep_last=1)
    learner.die_in_save = {2}
    with pytest.raises(LearnerDiedError):
        await save_checkpoint(tmp_path, make_border(2), learner, keep_last=1)
    assert find_checkpoint(tmp_path) == before
    await learner.load_checkpoint(str(before / "learner"))
    await save_checkpoint(tmp_path, make_border(2), learner, keep_last=1)
    assert names(tmp_path) == ["step-000002"]  # no draft is left


async def test_the_same_step_is_never_overwritten_in_place(tmp_path: Path, learner: ScriptedLearner) -> None:
    await save_checkpoint(tmp_path, make_border(4, snapshot=b"first"), learner, keep_last=2)
    second = await save_checkpoint(tmp_path, make_border(4, snapshot=b"second"), learner, keep_last=2)
    assert second.name == "step-000004.1"
    assert load_border(find_checkpoint(tmp_path)).snapshot == b"second"
    third = await save_checkpoint(tmp_path, make_border(4, snapshot=b"third"), learner, keep_last=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == [second.name, third.name]


async def test_a_resumed_run_goes_before_the_branch_that_it_left(tmp_path: Path, learner: ScriptedLearner) -> None:
    await save_checkpoint(tmp_path, make_border(9), learner, keep_last=3)
    newer = await save_checkpoint(tmp_path, make_border(6, incarnation=1), learner, keep_last=3)
    assert find_checkpoint(tmp_path) == newer


async def test_an_incomplete_folder_is_no_checkpoint(tmp_path: Path, learner: ScriptedLearner) -> None:
    path = await save_checkpoint(tmp_path / "checkpoints", make_border(1), learner, keep_last=2)
    assert find_checkpoint(tmp_path) == path  # a run directory
    assert find_checkpoint(path) == path
    (path / "buffer.msgpack").unlink()
    with pytest.raises(ConfigError, match="no complete checkpoint"):
        find_checkpoint(tmp_path)


def test_nothing_there_is_said_clearly(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no complete checkpoint in .*start the run afresh"):
        find_checkpoint(tmp_path / "nowhere")


async def test_a_damaged_or_foreign_record_is_refused(tmp_path: Path, learner: ScriptedLearner) -> None:
    path = await save_checkpoint(tmp_path, make_border(1), learner, keep_last=2)
    text = (path / "driver.json").read_text()
    (path / "driver.json").write_text(text.replace('"schema_version": 1', '"schema_version": 99'))
    with pytest.raises(ConfigError, match="schema_version 99"):
        load_record(path)
    (path / "driver.json").write_text(text[:20])
    with pytest.raises(ConfigError, match="not a driver record"):
        load_record(path)


def test_another_run_is_refused() -> None:
    record = make_border(1).record
    check_same_run(record, {"seed": 7, "num_tasks": 12})
    with pytest.raises(ConfigError, match="seed is 8, the checkpoint was written with 7"):
        check_same_run(record, {"seed": 8, "num_tasks": 12})
