"""The learner group over scripted ranks: no process, only who starts, who is asked and who is killed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")

from medvista_ray.cluster import learner_group as learner_group_module
from medvista_ray.cluster.learner_group import RankHandle, RemoteLearnerGroup
from medvista_ray.errors import LearnerDiedError


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    actors: list[Any] = []
    monkeypatch.setattr(learner_group_module.ray, "kill", actors.append)
    return actors


async def answer(*arguments: Any) -> None:
    await asyncio.sleep(0)


def make_rank(name: str) -> RankHandle:
    actor = SimpleNamespace(load_checkpoint=SimpleNamespace(remote=answer))
    return RankHandle(name=name, actor=actor, home=SimpleNamespace(), life=Future())  # type: ignore[arg-type]


async def test_a_close_while_ranks_start_again_does_not_wait_for_them(killed: list[Any]) -> None:
    ended: list[str] = []

    async def start_ranks() -> Sequence[RankHandle]:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("start")
            raise
        raise AssertionError("nobody waits that long")

    group = RemoteLearnerGroup(start_ranks)
    loading = asyncio.create_task(group.load_checkpoint("folder"))
    await asyncio.sleep(0.01)
    loading.cancel()  # a stop: the call goes on without its caller
    async with asyncio.timeout(5):
        await group.close()
        await group.close()
    assert ended == ["start"]
    with pytest.raises(LearnerDiedError, match="is closed"):
        await group.load_checkpoint("folder")


async def test_ranks_that_are_up_when_their_start_is_cancelled_are_ended_too(killed: list[Any]) -> None:
    ranks = [make_rank("learner rank 0"), make_rank("learner rank 1")]
    may_end = asyncio.Event()

    async def start_ranks() -> Sequence[RankHandle]:
        try:
            await may_end.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)  # too late to cancel: the ranks are up
        return ranks

    group = RemoteLearnerGroup(start_ranks)
    loading = asyncio.create_task(group.load_checkpoint("folder"))
    await asyncio.sleep(0.01)
    async with asyncio.timeout(5):
        await group.close()
    assert killed == [rank.actor for rank in ranks]
    await asyncio.gather(loading, return_exceptions=True)
