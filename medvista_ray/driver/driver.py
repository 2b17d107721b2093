"""The driver of a run: starts the loops, ends them in order, writes checkpoints, goes on after the learner has died.

    tasks --> DISPATCH --run_group--> env pool --commit--> BUFFER <--fetch, ack-- learner <--train_step-- TRAIN
                 |  ^                                      |    ^                                           |
              admit |receipt                            read    '------------------publish------------- PUBLISH
                 v  |                                      v                                               |
               ledger                                    RECORD --> run directory         engines <--stage, swap
        WATCH: expire, recover      LEASE: extend in a long step      PROGRESS: does anything move?

    loop      consumes              produces                      waits for                     unblocked by
    dispatch  tasks, issues again   running groups, receipts      capacity, a swap, a task      a receipt, a publish
    group     one admitted task     a committed group             its shard                     commit, death, deadline
    train     ready groups          a train step                  a batch of ready groups       a receipt, expiry
    publish   a train report        policy_version + 1            staging, admission            engines, dispatch
    watch     time                  expired leases, recoveries    its period, a recovery        the clock, a deadline
    lease     time, open leases     longer leases                 its period                    the clock
    progress  time, counters        the end of a stuck run        its period                    the clock
    record    the journal           recorded trajectories         a record                      a receipt

No loop waits without an end: every wait polls as well, and the watchdog fails a run in which nothing moves. Publishing
is part of the train loop, so a batch, its train step and its version come one after the other. Data never pass through
here, only receipts, leases and reports; what the record loop reads goes straight to the sink.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from medvista_ray.driver.checkpoint import (
    Border,
    DriverRecord,
    check_same_run,
    find_checkpoint,
    learner_folder,
    list_checkpoints,
    load_border,
    save_checkpoint,
)
from medvista_ray.driver.life import Life, make_life
from medvista_ray.driver.parts import Clock, DriverConfig, DriverParts, Probe, RunEnd, RunOutcome, Sink
from medvista_ray.driver.recorder import Recorder
from medvista_ray.driver.state import RunState
from medvista_ray.driver.telemetry import Telemetry
from medvista_ray.driver.train_loop import TrainLoop
from medvista_ray.errors import ConfigError, FenceError, LearnerDiedError, MedVistaError, RunFailedError
from medvista_ray.types.delivery import ConsumerSettings
from medvista_ray.types.protocols import TaskSource

_log = logging.getLogger(__name__)
_STOP_GRACE_S = 5.0  # for the train step under way; with groups and checkpoint a stop takes less than 10 s
_STOP_GROUPS_S = 2.0
_STOP_RECORD_S = 1.0
_STOP_SAVE_S = 2.0  # for the border before an abandoned step: until the learner has dropped it and has written


class Driver:
    """Runs tasks through env shards, buffer and learner until they end, the policy converges or somebody stops it."""

    def __init__(
        self,
        *,
        config: DriverConfig,
        parts: DriverParts,
        tasks: TaskSource,
        telemetry: Telemetry,
        checkpoints: Path,  # folder of this run's checkpoints
        clock: Clock = time.monotonic,
        probe: Probe | None = None,
        sink: Sink | None = None,
    ) -> None:
        self._config = config
        self._parts = parts
        self._tasks = tasks
        self._telemetry = telemetry
        self._folder = checkpoints
        self._clock = clock
        self._probe = probe
        self._sink = sink
        self._stop = asyncio.Event()
        self._checkpoint: Path | None = None  # the newest of this run; an older run's in the same folder never counts
        self._saved: Border | None = None  # what it was made from, in this process
        self._num_resumes = 0  # since that checkpoint
        self._state = RunState()  # of the newest life
        self._lock_step = config.buffer.max_staleness == 0
        self._num_tasks = len(tasks) * config.train.num_epochs

    # --- what a recipe calls
    async def run(self) -> RunOutcome:
        """Run to the end; the first exception of any loop ends the run and arrives with its own type.

        Raises:
            NoProgressError: nothing has moved for `train.no_progress_s`.
            RunFailedError: the learner died and there is nothing to go on from, or it keeps dying.
        """
        if self._checkpoint is None and list_checkpoints(self._folder):
            raise ConfigError(f"{self._folder} holds checkpoints of an earlier run: resume it, or give another folder")
        while True:
            try:
                return await self._live()
            except LearnerDiedError as error:
                self._count_resume(error)

    def request_stop(self) -> None:
        """Ask the run to stop at the next border between train steps; call it in the thread of the event loop."""
        self._stop.set()

    async def resume(self, checkpoint: Path) -> None:
        """Let `run` go on from a checkpoint, or from the newest one in a run directory.

        Raises:
            ConfigError: there is no complete checkpoint, or it belongs to other tasks.
        """
        path = await asyncio.to_thread(find_checkpoint, Path(checkpoint))
        check_same_run((await asyncio.to_thread(load_border, path)).record, self._identity())
        self._checkpoint = path
        _log.info("going on from %s", path)

    def _identity(self) -> dict[str, int]:
        return {
            "seed": self._config.seed,
            "num_tasks": len(self._tasks),
            "group_size": self._config.rollout.group_size,
        }

    def _count_resume(self, error: LearnerDiedError) -> None:
        limit = self._config.train.max_resumes
        if self._checkpoint is None:
            raise RunFailedError(
                f"the learner died before the checkpoint of the start, there is nothing to go on from: {error}. "
                "Start the run again"
            ) from error
        if self._num_resumes >= limit:
            raise RunFailedError(
                f"the learner died again after {limit} resumes from {self._checkpoint.name} (train.max_resumes): "
                f"{error}. It was at the batch of version {self._state.policy_version}; "
                f"trained since the checkpoint: {', '.join(self._state.batch_ids) or 'nothing'}"
            ) from error
        self._num_resumes += 1
        _log.warning(
            "the learner died (%s), resume %d of %d from %s", error, self._num_resumes, limit, self._checkpoint
        )

    # --- one life
    async def _live(self) -> RunOutcome:
        """Start or resume, run the loops, end them."""
        life = make_life(
            config=self._config,
            parts=self._parts,
            tasks=self._tasks,
            telemetry=self._telemetry,
            clock=self._clock,
            probe=self._probe,
            sink=self._sink,
        )
        self._state = life.state
        try:
            start = life.owner.start(self._start(life), name="start")
            await life.owner.wait(start, or_event=self._stop)
            if not start.done():
                return await self._finish(life, is_at_border=False)
            train = self._start_loops(life)
            await life.owner.wait(train, or_event=self._stop)
            is_at_border = train.done() or await self._reach_border(life, train)
            await self._halt(life)
            return await self._finish(life, is_at_border=is_at_border)
        finally:
            await life.owner.cancel_all()
            await self._stop_groups(life)  # nothing runs any more unless the run has failed

    async def _start(self, life: Life) -> None:
        """Bring learner, ledger and engines to one version; nothing is admitted before."""
        state, parts = life.state, self._parts
        if self._checkpoint is None:
            state.incarnation = (await parts.buffer.status()).incarnation
        else:
            await self._restore(life, self._checkpoint)
        settings = ConsumerSettings(
            groups_per_step=self._config.buffer.groups_per_step,
            max_staleness=self._config.buffer.max_staleness,
            world_size=self._config.learner.world_size,
        )
        attached = await parts.buffer.attach(settings, incarnation=state.incarnation)
        state.fence, state.policy_version = attached.fence, attached.policy_version
        await life.publisher.start()
        await life.dispatcher.reissue()
        if self._lock_step or self._checkpoint is None:
            life.border = await self._capture(life)
        if self._checkpoint is None:  # a learner that dies in its first steps, or a stop in them, has a way back
            assert life.border is not None
            await self._save(life, life.border)

    async def _restore(self, life: Life, path: Path) -> None:
        """Take learner, ledger, task cursor and counters back to a checkpoint."""
        border = await asyncio.to_thread(load_border, path)
        record = border.record
        await self._parts.learner.load_checkpoint(learner_folder(path))
        life.state.incarnation = await self._parts.buffer.cut(
            border.snapshot, contained_batch_ids=record.batch_ids, policy_version=record.policy_version
        )
        life.state.next_task = record.next_task
        self._telemetry.restore(record.counters)
        self._telemetry.count("driver/resumes/count")
        if life.recorder is not None:
            life.recorder.cursor = record.reader_cursor
            life.recorder.num_seen, life.recorder.num_recorded = record.num_seen, record.num_recorded

    def _start_loops(self, life: Life) -> asyncio.Task[None]:
        """Start every loop; return the train loop, whose end is the end of the run."""

        async def at_border() -> None:
            await self._at_border(life)

        train = TrainLoop(
            parts=self._parts,
            state=life.state,
            telemetry=self._telemetry,
            publisher=life.publisher,
            at_border=at_border,
            clock=self._clock,
        )
        life.state.made_progress(self._clock())
        life.owner.start(life.dispatcher.run(), name="dispatch")
        life.owner.start(life.watchdog.run(), name="watch")
        life.owner.start(life.watchdog.check_progress(), name="progress")
        life.owner.start(life.keeper.run(), name="lease")
        if life.recorder is not None:
            life.owner.start(life.recorder.run(), name="record")
        return life.owner.start(train.run(), name="train")

    # --- borders and checkpoints
    async def _at_border(self, life: Life) -> None:
        """Between two train steps, admission held: remember this moment, write a checkpoint when one is due."""
        is_due = life.state.policy_version % self._config.train.checkpoint_every == 0
        if is_due or self._lock_step:
            life.border = await self._capture(life)
            if is_due:
                await self._save(life, life.border)

    async def _capture(self, life: Life) -> Border:
        state, recorder = life.state, life.recorder
        snapshot = await self._parts.buffer.snapshot()
        if recorder is not None:
            await self._drain(recorder)
        record = DriverRecord(
            seed=self._config.seed,
            num_tasks=len(self._tasks),
            group_size=self._config.rollout.group_size,
            policy_version=state.policy_version,
            incarnation=state.incarnation,
            next_task=state.next_task,
            batch_ids=list(state.batch_ids),
            counters=self._telemetry.state(),
            reader_cursor=recorder.cursor if recorder else (0, 0),
            num_seen=recorder.num_seen if recorder else 0,
            num_recorded=recorder.num_recorded if recorder else 0,
        )
        return Border(record=record, snapshot=snapshot)

    async def _drain(self, recorder: Recorder) -> None:
        """Let the recorder come up to a snapshot: a new process has no journal of what was committed before it."""
        deadline = asyncio.timeout(_STOP_RECORD_S if self._stop.is_set() else None)
        try:
            async with deadline:
                await recorder.drain()
        except TimeoutError:
            if not deadline.expired():
                raise
            _log.warning("the recorder is behind, a resumed run leaves out what it has not recorded")

    async def _save(self, life: Life, border: Border, check: Callable[[], Awaitable[None]] | None = None) -> None:
        keep_last = self._config.train.keep_last
        self._checkpoint = await save_checkpoint(
            self._folder, border, self._parts.learner, keep_last=keep_last, check=check
        )
        self._saved = border
        self._num_resumes = 0
        life.state.batch_ids.clear()
        _log.info("checkpoint %s", self._checkpoint)

    # --- the end
    async def _reach_border(self, life: Life, train: asyncio.Task[None]) -> bool:
        """Let the train step under way end; False when it takes too long and is abandoned."""
        life.state.stopping = True
        life.state.signal.notify()
        deadline = asyncio.timeout(_STOP_GRACE_S)
        try:
            async with deadline:
                await life.owner.wait(train)
        except TimeoutError:
            if not deadline.expired():
                raise
            _log.warning("the train step takes longer than %g s and is abandoned", _STOP_GRACE_S)
            train.cancel()
            await asyncio.gather(train, return_exceptions=True)
            return False
        return True

    async def _halt(self, life: Life) -> None:
        """End every loop and group. The ledger keeps the groups as running, so a resume issues them under their ids."""
        life.state.stopping = True
        async with life.state.hold_admission("stop"):  # never between an admission and its answer
            await life.owner.cancel_all()
        await self._stop_groups(life)

    async def _stop_groups(self, life: Life) -> None:
        deadline = asyncio.timeout(_STOP_GROUPS_S)
        try:
            async with deadline:
                await life.dispatcher.stop_groups()
        except (TimeoutError, MedVistaError) as error:  # the run ends either way, and for a reason that matters more
            _log.warning("not every group could be stopped: %s: %s", type(error).__name__, error)

    async def _save_before_step(self, life: Life) -> None:
        """Save the border before the abandoned train step; the checkpoint before it stays the newest if that fails."""
        border = life.border if self._lock_step else await self._capture(life)
        assert border is not None
        if border is self._saved:
            return

        async def check_unclaimed() -> None:  # the learner has written, so the step has ended: what it did is final
            if (await self._parts.buffer.status()).counts["acked"]:
                raise FenceError("the abandoned train step has claimed its batch, the weights may contain it")

        try:
            async with asyncio.timeout(_STOP_SAVE_S):
                await self._save(life, border, check_unclaimed)
        except (TimeoutError, MedVistaError) as error:
            _log.warning("the border before it could not be saved: %s: %s", type(error).__name__, error)

    async def _finish(self, life: Life, *, is_at_border: bool) -> RunOutcome:
        """Write the last checkpoint and sum up."""
        state = life.state
        if is_at_border:
            # A lock-step run that was stopped goes back to its border, so that the same groups run side by side again.
            border = life.border if self._lock_step and not state.data_ended else await self._capture(life)
            assert border is not None
            await self._save(life, border)
        elif state.step_started_s is not None:
            await self._save_before_step(life)
        status = await self._parts.buffer.status()
        end = RunEnd.STOPPED
        if state.data_ended:
            limit = self._config.buffer.converged_groups
            has_converged = 0 < limit <= status.num_filtered_in_a_row
            end = RunEnd.CONVERGED if has_converged else RunEnd.END_OF_DATA
        self._telemetry.show(status, num_tasks=self._num_tasks, waits=state.waits)
        return RunOutcome(
            end=end,
            policy_version=state.policy_version,
            checkpoint=self._checkpoint,
            summary=self._telemetry.summary(status),
        )
