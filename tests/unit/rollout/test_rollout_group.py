"""A group: its members side by side, the order of blobs and turns, the count of live episodes, its receipt."""

from __future__ import annotations

import asyncio

import pytest
from rollout_parts import ZOOM, answer, make_factory, make_runner, make_tasks, make_work, play, store_sources

from medvista_ray.errors import BlobMissingError, EngineDiedError
from medvista_ray.rollout.group import EpisodeCount, make_receipt, run_group
from medvista_ray.testing.blobs import MemoryBlobStore
from medvista_ray.testing.inference import ScriptedPolicyClient
from medvista_ray.types.delivery import CommitResult
from medvista_ray.types.trajectories import StopReason

TASKS = make_tasks("zoom")


@pytest.fixture
def factory():
    made = make_factory()
    yield made
    made.close()


async def run(renderer, record, client, factory, *, live=None, make_env=None, blobs=None, group_size=3, on_end=None):
    if blobs is None:
        blobs = MemoryBlobStore()
        await store_sources(blobs, record)
    return await run_group(
        make_work(record, group_size=group_size, attempt=2),
        runner=make_runner(renderer, client, blobs),
        make_env=make_env or factory.make,
        blobs=blobs,
        cache=factory.cache,
        live=live or EpisodeCount(),
        **({} if on_end is None else {"on_episode_end": on_end}),
    )


async def test_members_are_alike_but_for_their_number(renderer, factory):
    record, live, ends = TASKS[0], EpisodeCount(), []

    def act(request):
        assert live() == 3 - len(ends)
        text = answer("LTX"[request.member]) if request.turn_index else ZOOM
        return renderer.encode_action(text).tolist()

    client = ScriptedPolicyClient(act)
    group = await run(renderer, record, client, factory, live=live, on_end=lambda: ends.append(live()))
    assert live() == 0
    assert ends == [2, 1, 0]
    assert (group.group_id, group.attempt, group.incarnation, group.task) == ("0/0/0", 2, 0, record.task)
    assert [member.member for member in group.trajectories] == [0, 1, 2]
    assert all(member.is_live for member in group.trajectories)
    assert sorted({request.member for request in client.requests}) == [0, 1, 2]
    rewards = {"LTX"[member.member]: member.reward for member in group.trajectories}
    assert rewards == {letter: 2.0 if letter == record.reference.answer else 1.0 for letter in "LTX"}


async def test_every_image_is_in_the_store_before_its_turn_is_sampled(renderer, factory):
    record, blobs, seen = TASKS[1], MemoryBlobStore(), set()
    await store_sources(blobs, record)

    def act(request):
        digests = {span.digest for span in request.image_spans}
        assert digests <= set(blobs.data), "sampled before its image was stored"
        seen.update(digests)
        return renderer.encode_action(answer("L") if request.turn_index else ZOOM).tolist()

    group = await run(renderer, record, ScriptedPolicyClient(act), factory, blobs=blobs)
    assert all(member.error is None for member in group.trajectories)
    named = {span.digest for member in group.trajectories for span in member.image_spans}
    shown = {
        image.digest
        for member in group.trajectories
        for turn in member.turns
        for message in turn.messages
        for image in message.images
    }
    assert named == shown == seen
    assert named | set(record.blobs) == set(blobs.data)  # n members over one image hold one blob of each view
    assert len(named) == 2


async def test_a_source_that_is_nowhere_fails_the_group_and_its_count(renderer, factory):
    live = EpisodeCount()
    with pytest.raises(BlobMissingError):
        await run(renderer, TASKS[2], play(renderer), factory, live=live, blobs=MemoryBlobStore())
    assert live() == 0


async def test_a_dead_engine_arrives_with_its_own_type(renderer, factory):
    live = EpisodeCount()
    client = play(renderer, answer("L"))
    client.is_dead = True
    with pytest.raises(EngineDiedError):
        await run(renderer, TASKS[0], client, factory, live=live)
    assert live() == 0


class Breaking:
    """An env in which the second member's method raises."""

    def __init__(self, factory, where):
        self._factory = factory
        self._where = where
        self._made = 0

    def __call__(self):
        env = self._factory.make()
        self._made += 1
        if self._made == 2:

            def fail(*args, **kwargs):
                raise RuntimeError("somebody's bug")

            setattr(env, self._where, fail)
        return env


@pytest.mark.parametrize("where", ["reset", "step_async", "observe"])
async def test_a_member_that_breaks_leaves_the_others_alone(renderer, factory, where):
    live = EpisodeCount()
    group = await run(
        renderer,
        TASKS[0],
        play(renderer, ZOOM, answer("L")),
        factory,
        live=live,
        make_env=Breaking(factory, where),
    )
    assert [member.stop_reason for member in group.trajectories] == [
        StopReason.ANSWERED,
        StopReason.BROKEN,
        StopReason.ANSWERED,
    ]
    assert group.trajectories[1].error.startswith("RuntimeError at test_rollout_group.py:")
    assert live() == 0
    receipt = make_receipt(group, CommitResult.ACCEPTED)
    assert receipt.num_broken == 1
    assert len(receipt.rewards) == 2


async def test_an_env_that_cannot_close_costs_nothing(renderer, factory, caplog):
    live = EpisodeCount()
    client = play(renderer, answer("L"))
    group = await run(renderer, TASKS[0], client, factory, live=live, make_env=Breaking(factory, "close"))
    assert all(member.is_live for member in group.trajectories)
    assert live() == 0
    assert "could not be closed: RuntimeError" in caplog.text


async def test_a_cancelled_group_gives_its_episodes_back(renderer, factory):
    live, started = EpisodeCount(), asyncio.Event()

    class Waiting:
        async def generate(self, request):
            started.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(run(renderer, TASKS[0], Waiting(), factory, live=live))
    await started.wait()
    assert live() == 3
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert live() == 0


async def test_the_receipt_sums_the_group_up(renderer, factory):
    record = TASKS[0]
    right = record.reference.answer
    wrong = next(letter for letter in "LTXJ" if letter != right)

    def act(request):
        texts = {0: (ZOOM, answer(right)), 1: (answer(wrong),), 2: ("nonsense",)}[request.member]
        return renderer.encode_action(texts[request.turn_index]).tolist()

    group = await run(renderer, record, ScriptedPolicyClient(act), factory)
    receipt = make_receipt(group, CommitResult.ACCEPTED)
    assert (receipt.group_id, receipt.attempt, receipt.result, receipt.family) == ("0/0/0", 2, "accepted", "zoom")
    assert receipt.rewards == (2.0, 1.0, -1.0)
    assert receipt.num_broken == 0
    assert receipt.num_tokens == sum(len(member.token_ids) for member in group.trajectories)
    assert receipt.num_action_tokens == sum(int(member.loss_mask.sum()) for member in group.trajectories)
    metrics = receipt.metrics
    assert metrics["rollout/turns/mean"] == pytest.approx(4 / 3)
    assert metrics["rollout/calls/mean"] == pytest.approx(1 / 3)
    assert metrics["rollout/truncated/mean"] == 0.0
    assert metrics["reward/correct/mean"] == pytest.approx(1 / 3)
    assert metrics["reward/format/mean"] == pytest.approx(1 / 3)
