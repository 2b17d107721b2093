"""The loops between a start or resume and the next, and what they share; made anew for every life of the learner.

Knows which loop is handed what; neither when they start nor when they end.
"""

from __future__ import annotations

from dataclasses import dataclass

from medvista_ray.driver.checkpoint import Border
from medvista_ray.driver.dispatch import Dispatcher
from medvista_ray.driver.lease_keeper import LeaseKeeper
from medvista_ray.driver.owner import TaskOwner
from medvista_ray.driver.parts import Clock, DriverConfig, DriverParts, Probe, Sink
from medvista_ray.driver.publisher import Publisher
from medvista_ray.driver.recorder import Recorder
from medvista_ray.driver.state import RunState
from medvista_ray.driver.telemetry import Telemetry
from medvista_ray.driver.watchdog import Watchdog
from medvista_ray.types.protocols import TaskSource


@dataclass(slots=True, kw_only=True)
class Life:
    """The loops of one life; none of their state outlives the learner's."""

    state: RunState
    owner: TaskOwner
    publisher: Publisher
    dispatcher: Dispatcher
    watchdog: Watchdog
    keeper: LeaseKeeper
    recorder: Recorder | None
    border: Border | None = None  # the start; in lock-step: the newest moment between train steps


def make_life(
    *,
    config: DriverConfig,
    parts: DriverParts,
    tasks: TaskSource,
    telemetry: Telemetry,
    clock: Clock,
    probe: Probe | None,
    sink: Sink | None,
) -> Life:
    """Wire the loops of one life; none runs yet."""
    state, owner = RunState(), TaskOwner()
    publisher = Publisher(
        parts=parts,
        state=state,
        telemetry=telemetry,
        max_logprob_diff=config.learner.max_logprob_diff,
        probe_every=config.train.probe_every,
        probe=probe,
    )
    watchdog = Watchdog(
        parts=parts,
        state=state,
        telemetry=telemetry,
        publisher=publisher,
        clock=clock,
        no_progress_s=config.train.no_progress_s,
        num_tasks=len(tasks) * config.train.num_epochs,
    )
    dispatcher = Dispatcher(
        config=config,
        parts=parts,
        tasks=tasks,
        state=state,
        owner=owner,
        telemetry=telemetry,
        recover=watchdog.recover_all,
        clock=clock,
    )
    keeper = LeaseKeeper(
        buffer=parts.buffer,
        state=state,
        clock=clock,
        ack_wait_s=config.buffer.ack_wait_s,
        no_progress_s=config.train.no_progress_s,
    )
    return Life(
        state=state,
        owner=owner,
        publisher=publisher,
        dispatcher=dispatcher,
        watchdog=watchdog,
        keeper=keeper,
        recorder=None if sink is None else _make_recorder(config, parts, state, sink),
    )


def _make_recorder(config: DriverConfig, parts: DriverParts, state: RunState, sink: Sink) -> Recorder:
    return Recorder(
        buffer=parts.buffer,
        state=state,
        sink=sink,
        record_every=config.train.record_every,
        max_recorded=config.train.max_recorded,
    )
