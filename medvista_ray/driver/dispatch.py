"""The dispatch loop and its groups: which task runs next, and what becomes of a group that does not come back.

    to_issue_again, then epoch/index order --admit--> running --run_group--> receipt
                                                  ^                |  shard died: attempt + 1, run again
                                                  '----------------'  deadline: cancel, issued again by the ledger

The ledger alone bounds how many run. In lock-step (`max_staleness` 0) groups start in waves: as many as are admitted,
all at once, in order, and the next wave when all have ended; so what runs beside what does not depend on timing.
Knows ids, tasks and receipts; never looks into a trajectory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from medvista_ray.driver.owner import TaskOwner
from medvista_ray.driver.parts import Clock, DriverConfig, DriverParts
from medvista_ray.driver.state import RunningGroup, RunState
from medvista_ray.driver.telemetry import Telemetry
from medvista_ray.errors import BlobMissingError, DataError, EngineDiedError, ImageError, MedVistaError, ShardDiedError
from medvista_ray.types.delivery import Admitted, GroupWork, Wait, WaitReason
from medvista_ray.types.protocols import TaskSource
from medvista_ray.types.trajectories import format_group_id, parse_group_id

_log = logging.getLogger(__name__)
_POLL_S = 1.0  # receipts and publishes wake the loop at once


class Dispatcher:
    """Admits tasks and looks after their groups until each has ended."""

    def __init__(
        self,
        *,
        config: DriverConfig,
        parts: DriverParts,
        tasks: TaskSource,
        state: RunState,
        owner: TaskOwner,
        telemetry: Telemetry,
        recover: Callable[[], Awaitable[None]],  # recreate dead shards and engines
        clock: Clock,
    ) -> None:
        self._config = config
        self._parts = parts
        self._tasks = tasks
        self._state = state
        self._owner = owner
        self._telemetry = telemetry
        self._recover = recover
        self._clock = clock
        self._lock_step = config.buffer.max_staleness == 0
        self._num_tasks = len(tasks) * config.train.num_epochs
        self._has_ended_tasks = False

    # --- the loop
    async def run(self) -> None:
        """Admit groups until the run stops; never returns by itself before, a stale task may come back."""
        state = self._state
        while not state.stopping:
            mark = state.signal.mark()
            reason = await self._admit_what_fits()
            if reason is WaitReason.CONVERGED and state.running:
                _log.info("converged: %d groups are cancelled, the ready rest is trained", len(state.running))
                await self._cancel_all()
            state.waits["dispatch"] = reason
            await state.signal.wait(mark, timeout_s=_POLL_S)

    async def _admit_what_fits(self) -> WaitReason:
        """Admit and start groups until there is no task or no capacity; return why it ended."""
        if self._lock_step and self._state.running:
            return WaitReason.GROUP_INCOMPLETE
        wave: list[GroupWork] = []
        answer = await self._admit_next()
        while isinstance(answer, Admitted):
            await self._start(answer, wave)
            answer = await self._admit_next()
        self._launch(wave)
        return answer.reason

    async def _admit_next(self) -> Admitted | Wait:
        state = self._state
        async with state.hold_admission("dispatch"):
            state.waits["dispatch"] = "admit"
            group_id, is_new = await self._next_group()
            if group_id is None or state.stopping:
                return Wait(reason=WaitReason.NO_TASK)
            answer = await self._parts.buffer.admit(group_id, incarnation=state.incarnation)
            if isinstance(answer, Admitted):
                state.next_task += is_new
                self._note(answer)
            return answer

    async def _next_group(self) -> tuple[str | None, bool]:
        """Choose the next group id, tasks to issue again first, and say whether it moves the cursor."""
        again = await self._parts.buffer.to_issue_again()
        if again:
            return again[0], False
        if self._state.next_task < self._num_tasks:
            epoch, index = divmod(self._state.next_task, len(self._tasks))
            return format_group_id(epoch, index, 0), True
        if not self._has_ended_tasks:
            await self._parts.buffer.end_tasks(incarnation=self._state.incarnation)
            self._has_ended_tasks = True
            self._state.signal.notify()
        return None, False

    async def reissue(self) -> None:
        """Start again, under their ids, the groups that ran at the checkpoint; the ledger has given them an attempt."""
        wave: list[GroupWork] = []
        for admitted in await self._parts.buffer.running():
            self._note(admitted)
            await self._start(admitted, wave)
        self._launch(wave)

    def _note(self, admitted: Admitted) -> None:
        self._state.running[admitted.group_id] = RunningGroup(attempt=admitted.attempt, started_s=self._clock())

    # --- one group
    async def _start(self, admitted: Admitted, wave: list[GroupWork]) -> None:
        """Store a group's source images; then start it, or in lock-step let it join the wave."""
        group_id = admitted.group_id
        try:
            work = await self._prepare(admitted)
        except (DataError, ImageError, BlobMissingError) as error:
            await self._fail(group_id, error)
            return
        wave.append(work)
        if not self._lock_step:
            self._launch(wave)

    async def _prepare(self, admitted: Admitted) -> GroupWork:
        _, index, _ = parse_group_id(admitted.group_id)
        record = await asyncio.to_thread(self._tasks.__getitem__, index)
        for digest, data in record.blobs.items():
            await self._parts.blobs.put_if_absent(digest, data)
        return GroupWork(
            task=record.task,
            reference=record.reference,
            group_id=admitted.group_id,
            attempt=admitted.attempt,
            incarnation=admitted.incarnation,
            group_size=self._config.rollout.group_size,
        )

    def _launch(self, wave: list[GroupWork]) -> None:
        for work in wave:
            self._telemetry.start()
            running = self._state.running[work.group_id]
            running.task = self._owner.start(self._run_group(work), name=f"group {work.group_id}")
        wave.clear()

    async def _run_group(self, work: GroupWork) -> None:
        """Run one group to its end, on as many shards as it takes."""
        next_work: GroupWork | None = work
        while next_work is not None:
            next_work = await self._run_attempt(next_work)
        self._forget(work.group_id)

    async def _run_attempt(self, work: GroupWork) -> GroupWork | None:
        """Run one attempt; return the next one, or None when the group has ended."""
        deadline = asyncio.timeout(self._config.env.group_timeout_s)
        try:
            async with deadline:
                receipt = await self._parts.env_pool.run_group(work)
        except TimeoutError:
            if not deadline.expired():
                raise
            _log.warning("group %s is cancelled: env.group_timeout_s is over", work.group_id)
            self._telemetry.count("driver/deadline/groups")
            await self._cancel(work.group_id)
        except (ShardDiedError, EngineDiedError) as error:
            return await self._attempt_again(work, error)
        except (DataError, ImageError, BlobMissingError) as error:
            await self._fail(work.group_id, error)
        else:
            self._telemetry.on_receipt(receipt)
        return None

    async def _attempt_again(self, work: GroupWork, error: MedVistaError) -> GroupWork | None:
        _log.warning("group %s, attempt %d: %s: %s", work.group_id, work.attempt, type(error).__name__, error)
        self._telemetry.count("driver/died/attempts")
        await self._recover()
        answer = await self._parts.buffer.attempt(work.group_id, replaces=work.attempt, incarnation=work.incarnation)
        if answer is None:  # committed before the shard died, or out of attempts: the ledger knows
            return None
        self._state.running[work.group_id].attempt = answer.attempt
        return replace(work, attempt=answer.attempt)

    async def _cancel(self, group_id: str) -> None:
        """End a group in its shard and in the ledger, which issues its task again."""
        await self._stop_in_shard(group_id)
        await self._parts.buffer.cancel(group_id, incarnation=self._state.incarnation)

    async def _fail(self, group_id: str, error: MedVistaError) -> None:
        """End a group whose data are bad; the run goes on and it is counted."""
        reason = f"{type(error).__name__}: {error}"
        _log.warning("group %s failed: %s", group_id, reason)
        self._telemetry.count("driver/bad_data/groups")
        await self._parts.buffer.fail(group_id, reason=reason, incarnation=self._state.incarnation)
        self._forget(group_id)

    def _forget(self, group_id: str) -> None:
        self._state.running.pop(group_id, None)
        self._state.made_progress(self._clock())

    # --- many groups
    async def _cancel_all(self) -> None:
        for group_id in await self._end_tasks_of_groups():
            await self._cancel(group_id)
            self._forget(group_id)

    async def stop_groups(self) -> None:
        """Stop what runs without telling the ledger: a resume issues it again under the same id."""
        group_ids = await self._end_tasks_of_groups()
        await asyncio.gather(*(self._stop_in_shard(group_id) for group_id in group_ids))

    async def _end_tasks_of_groups(self) -> list[str]:
        """Cancel the tasks that wait for groups, and return the ids of those groups."""
        groups = dict(self._state.running)
        tasks = [group.task for group in groups.values() if group.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return list(groups)

    async def _stop_in_shard(self, group_id: str) -> None:
        try:
            await self._parts.env_pool.cancel_group(group_id)
        except ShardDiedError as error:  # then it does not run any more
            _log.info("group %s ended with its shard: %s", group_id, error)
