"""When a shard gives up on the actor of a tool service, and when it kills it for all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("ray")

from medvista_ray.cluster import tool_services
from medvista_ray.cluster.tool_services import RemoteToolService
from medvista_ray.tools.base import CallKey
from medvista_ray.tools.execution import Execution, Request
from medvista_ray.tools.frames import make_done
from medvista_ray.types.tool_calls import ToolFailure

REQUEST = Request(tool="counts", arguments="{}", records=(), load=bytes, key=CallKey(), timeout_s=0.2)
DONE = tool_services._encode(make_done(Execution()))


class Answer:
    """Comes after a while, or never."""

    def __init__(self, value: object, after_s: float | None) -> None:
        self._future: Future[Any] = Future()
        if after_s is not None:
            threading.Timer(after_s, self._future.set_result, [value]).start()

    def future(self) -> Future[Any]:
        return self._future


class Method:
    def __init__(self, remote: Callable[..., Answer]) -> None:
        self.remote = remote


class BusyActor:
    """Has the methods of the actor handle; its loop answers nothing before `busy_s`, and not at all with None."""

    busy_s: float | None = 0.0

    def __init__(self) -> None:
        self.start = Method(lambda: Answer(None, 0.0))
        self.health = Method(lambda: Answer(None, self.busy_s))
        self.call = Method(lambda *_, **__: Answer(DONE, self.busy_s))


@pytest.fixture
def actor() -> BusyActor:
    return BusyActor()


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    killed: list[object] = []
    monkeypatch.setattr(tool_services.ray, "kill", lambda actor, no_restart: killed.append(actor))
    monkeypatch.setattr(tool_services, "_PULSE_S", 0.05)
    return killed


def test_an_actor_that_is_busy_for_longer_than_a_call_may_take_is_not_killed(
    actor: BusyActor, killed: list[object]
) -> None:
    actor.busy_s = 0.7
    service = RemoteToolService(actor)
    assert service.call_sync(REQUEST).failure is None
    hurried = service.call_sync(replace(REQUEST, expires_s=time.monotonic() + 0.1))
    assert hurried.failure is ToolFailure.TIMED_OUT
    assert killed == []


def test_a_frozen_actor_is_killed_once_however_many_wait(
    actor: BusyActor, killed: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool_services, "_SILENT_S", 0.5)
    actor.busy_s = None
    service = RemoteToolService(actor)
    request = replace(REQUEST, expires_s=time.monotonic() + 1.2)  # a second silence would last 0.7 s more
    with ThreadPoolExecutor(4) as threads:
        executions = list(threads.map(service.call_sync, [request] * 4))
    assert {execution.failure for execution in executions} == {ToolFailure.TIMED_OUT}
    assert killed == [actor]


def test_a_frozen_actor_is_killed_though_every_call_is_in_a_hurry(
    actor: BusyActor, killed: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool_services, "_SILENT_S", 0.5)
    actor.busy_s = None
    service, deadline_s = RemoteToolService(actor), time.monotonic() + 30
    while not killed:
        assert time.monotonic() < deadline_s, "nobody kills it"
        hurried = service.call_sync(replace(REQUEST, expires_s=time.monotonic() + 0.2))
        assert hurried.failure is ToolFailure.TIMED_OUT


def test_only_the_latest_digests_are_remembered(
    actor: BusyActor, killed: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool_services, "_REMEMBERED", 3)
    service = RemoteToolService(actor)
    service._remember("abc")
    service._remember("ade")
    assert list(service._sent) == ["a", "d", "e"]
