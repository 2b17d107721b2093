import hashlib

import numpy as np
import pytest

from medvista_ray.errors import BlobMissingError, EngineClosedError, EngineDiedError, ShardDiedError
from medvista_ray.testing.blobs import MemoryBlobStore
from medvista_ray.testing.clock import ManualClock
from medvista_ray.testing.inference import ScriptedEngines, ScriptedPolicyClient
from medvista_ray.testing.records import ListTaskSource, make_group, make_task_record, make_trajectory
from medvista_ray.testing.rollout import Death, ScriptedEnvPool
from medvista_ray.types.delivery import CommitResult, GroupWork
from medvista_ray.types.sampling import GenerateRequest, SamplingSpec, WeightUpdate
from medvista_ray.types.trajectories import TrajectoryGroup
from medvista_ray.types.wire import decode_group, encode_group


def make_request(turn_index: int, *, max_new_tokens: int = 8) -> GenerateRequest:
    return GenerateRequest(
        group_id="0/0/0",
        member=0,
        turn_index=turn_index,
        token_ids=np.arange(5, dtype=np.int32),
        image_spans=(),
        max_new_tokens=max_new_tokens,
        sampling=SamplingSpec(stop_token_ids=(9,)),
    )


def make_update(version: int) -> WeightUpdate:
    return WeightUpdate(policy_version=version, path="w", digest="0" * 64)


def make_work(group_id: str = "0/0/0") -> GroupWork:
    record = make_task_record(0)
    return GroupWork(
        task=record.task, reference=record.reference, group_id=group_id, attempt=0, incarnation=0, group_size=2
    )


class CommitLog:
    """Accepts everything."""

    def __init__(self) -> None:
        self.groups: list[TrajectoryGroup] = []

    async def commit(self, group: TrajectoryGroup) -> CommitResult:
        self.groups.append(group)
        return CommitResult.ACCEPTED


def test_a_manual_clock_only_goes_forward() -> None:
    clock = ManualClock(5.0)
    clock.advance(2.5)
    assert clock() == 7.5
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)


def test_a_made_trajectory_is_a_valid_record() -> None:
    trajectory = make_trajectory(reward=0.5, policy_version=3)
    mask = np.zeros(len(trajectory.token_ids), bool)
    for span in trajectory.version_spans:
        mask[span.start : span.end] = True
    assert (mask == trajectory.loss_mask).all()  # spans cover the action tokens
    assert (trajectory.logprobs[~mask] == 0).all()
    assert trajectory.turns[0].action_end - trajectory.turns[0].action_start == trajectory.num_action_tokens
    assert trajectory.min_policy_version == 3


def test_a_made_group_has_broken_members_and_survives_the_wire() -> None:
    group = make_group("1/2/3", rewards=(1.0, None, 0.0), attempt=1, incarnation=2, policy_version=4)
    assert [member.is_live for member in group.trajectories] == [True, False, True]
    again = decode_group(encode_group(group))
    assert (again.group_id, again.attempt, again.incarnation) == ("1/2/3", 1, 2)
    assert [member.reward for member in again.live] == [1.0, 0.0]


def test_a_task_source_raises_what_stands_in_it() -> None:
    source = ListTaskSource([make_task_record(0), ValueError("bad row")])
    assert len(source) == 2
    assert hashlib.sha256(b"image 0").hexdigest() in source[0].blobs
    with pytest.raises(ValueError, match="bad row"):
        source[1]


async def test_a_scripted_policy_answers_by_turn_and_stops() -> None:
    client = ScriptedPolicyClient([[1, 2, 9], [3, 4, 5]], policy_version=6)
    first, second = await client.generate(make_request(0)), await client.generate(make_request(1, max_new_tokens=2))
    assert (first.token_ids.tolist(), first.stopped, first.prompt_length) == ([1, 2, 9], True, 5)
    assert (second.token_ids.tolist(), second.stopped) == ([3, 4], False)
    assert second.version_spans[0].policy_version == 6
    client.is_dead = True
    with pytest.raises(EngineDiedError):
        await client.generate(make_request(0))


async def test_a_scripted_policy_may_look_at_the_request() -> None:
    client = ScriptedPolicyClient(lambda request: [request.member + 7])
    assert (await client.generate(make_request(3))).token_ids.tolist() == [7]


async def test_scripted_engines_swap_only_what_is_staged() -> None:
    engines = ScriptedEngines(num_engines=2)
    with pytest.raises(EngineClosedError):
        await engines.swap(0)
    await engines.stage(make_update(0))
    await engines.swap(0)
    assert engines.policy_version == 0
    before = engines.engine_set()
    engines.kill()
    assert len(engines.engine_set().engines) == 1
    assert await engines.recover() == 1
    assert engines.engine_set().epoch > before.epoch
    assert len(engines.engine_set().engines) == 2


@pytest.mark.parametrize(("death", "num_committed"), [(Death.BEFORE_COMMIT, 0), (Death.AFTER_COMMIT, 1)])
async def test_a_scripted_shard_dies_when_told_and_stays_dead(death: Death, num_committed: int) -> None:
    log = CommitLog()
    pool = ScriptedEnvPool(log, policy_version=lambda: 2)  # type: ignore[arg-type]
    with pytest.raises(EngineDiedError):
        await pool.run_group(make_work())  # nobody has set engines
    await pool.set_engines(ScriptedEngines().engine_set())
    pool.deaths = {"0/0/0": [death]}
    for _ in range(2):
        with pytest.raises(ShardDiedError):
            await pool.run_group(make_work())
    assert len(log.groups) == num_committed
    assert await pool.recover() == 1
    receipt = await pool.run_group(make_work())
    assert (receipt.rewards, receipt.num_action_tokens) == ((0.0, 1.0), 4)
    assert log.groups[-1].min_policy_version == 2


async def test_a_memory_blob_store_checks_digests() -> None:
    store, data = MemoryBlobStore(), b"pixels"
    digest = hashlib.sha256(data).hexdigest()
    with pytest.raises(BlobMissingError, match=digest):
        await store.get_many([digest])
    await store.put_if_absent(digest, data)
    assert await store.get_many([digest, digest]) == [data, data]
    with pytest.raises(ValueError, match="digest"):
        await store.put_if_absent("0" * 64, data)
