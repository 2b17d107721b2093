"""The world of the state machine: driver, shards, engines and a reader around one buffer; and what must hold."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from buffer_parts import BrokenPromiseError, KillableJournal, KilledError, LostReplyError, build_group, cut_round_robin

from medvista_ray.buffer.records import GroupCommitted, end_states
from medvista_ray.buffer.replay_buffer import ReplayBuffer
from medvista_ray.config.schema import BufferConfig
from medvista_ray.types.delivery import SETTLED_STATES, Admitted, GroupState, Lease
from medvista_ray.types.trajectories import TrajectoryGroup, parse_group_id


@dataclass
class Execution:
    """One run of a group in a shard; `history` is what the weights that sampled it had been trained on."""

    group_id: str
    attempt: int
    incarnation: int
    version: int
    history: tuple
    group: TrajectoryGroup | None = None


@dataclass
class Held:
    """A batch in the learner's hands."""

    train_from_version: int
    lease: Lease | None = None
    shards: dict = field(default_factory=dict)


class World:
    """Driver, shards, engines, learner and reader around one buffer, each honest, any of which may die.

    Weights are known by their history: the batches that they were trained on. So staleness, training twice and lost
    training show as facts about histories, not as numbers that the buffer counts.
    """

    PROGRESS = ("admit", "execute", "execute", "fetch", "fetch", "train", "ack", "publish", "swap", "read", "attach")
    PROGRESS += ("reconcile",)
    FAULTS = (
        "wait",
        "wait",
        "checkpoint",
        "lose_shard",
        "resume",
        "lose_learner",
        "cancel",
        "fail",
        "nack",
        "nack",
        "extend",
    )

    def __init__(self, mode: str, seed: int) -> None:
        pick = random.Random(seed).choice
        self.mode, self.fixed = mode, mode == "fixed"
        self.num_tasks, self.ranks, self.prefetch = pick([5, 9, 14]), pick([1, 2]), pick([0, 1, 2])
        self.filtered_share, self.lingering = pick([0, 0.2, 0.5]), pick([0.0, 0.95])  # the oldest may run long
        self.config = BufferConfig(
            groups_per_step=pick([1, 2, 3]),
            max_staleness=pick([0, 1, 2]),
            max_concurrent=pick([1, 2, 5, 9]),
            ack_wait_s=pick([6, 15, 40]),
            max_attempts=pick([2, 30]),
            max_issues=pick([2, 3]),
            max_deliver=pick([2, 4, 50]),
            converged_groups=pick([3, 0, 0]),
        )
        self.journal = KillableJournal(retain_ended=pick([2, 10_000]), base_every=pick([7, 10_000]))
        self.buffer = self.make_buffer()
        self.now_s, self.num_made, self.loses_reply, self.broken = 0.0, 0, False, False
        self.cursor, self.intent, self.swap_to, self.said_end, self.incarnation = 0, None, None, False, 0
        self.executions: list[Execution] = []
        self.sampled_by: dict[int, tuple] = {}  # uid of a group -> history of the weights that sampled it
        self.engine_history, self.engine_version = (), 0
        self.fence, self.attached, self.ended, self.version, self.history = 0, False, False, 0, ()
        self.held: list[Held] = []
        self.gradients, self.unpublished, self.acked, self.ack_is_open = None, [], [], False
        self.published: dict[int, tuple] = {0: ()}
        self.reader, self.seen, self.lossy = (0, 0), {}, False
        self.kept = (self.buffer.snapshot(), (), 0, (), 0)

    # --- the buffer's process
    def make_buffer(self) -> ReplayBuffer:
        return ReplayBuffer(self.config, cut_batch=cut_round_robin, journal=self.journal)

    @property
    def state(self):
        return self.buffer._ledger.state

    def call(self, name: str, *args, **kwargs):
        try:
            answer = getattr(self.buffer, name)(*args, **kwargs)
        except KilledError:
            self.buffer = self.make_buffer()
            raise LostReplyError from None
        finally:
            self.journal.armed = None
        if self.loses_reply:
            self.loses_reply = False
            self.restart()
            raise LostReplyError
        return answer

    def restart(self) -> None:
        before = self.buffer._ledger.dump()
        self.buffer = self.make_buffer()
        if self.buffer._ledger.dump() != before:
            raise BrokenPromiseError("replaying the journal gives another ledger")

    def step(self, name: str, rng: random.Random, kill: tuple[str, int] | None = None) -> bool:
        """Do one thing, with the buffer killed around a write or after the call; return whether anything moved."""
        self.loses_reply = kill is not None and kill[0] == "lost"
        self.journal.armed = None if self.loses_reply else kill
        try:
            moved = bool(getattr(self, "do_" + name)(rng))
        except LostReplyError:
            moved = True
        except Exception:
            self.broken = True
            raise
        self.journal.armed, self.loses_reply = None, False
        self.check()
        return moved

    def rush(self, rng: random.Random, num_steps: int) -> None:
        """Do many things in any order, a few of them with the buffer killed."""
        kills = [None] * 30 + [("before", 0), ("before", 1), ("after", 0), ("after", 1), ("lost", 0)]
        for _ in range(num_steps):
            self.step(rng.choice(self.PROGRESS + self.PROGRESS + self.FAULTS), rng, rng.choice(kills))

    # --- driver and shards
    def do_admit(self, rng) -> bool:
        if self.swap_to is not None:
            return False
        again = self.buffer.to_issue_again()
        new = f"0/{self.cursor}/0" if self.cursor < self.num_tasks else None
        group_id = self.intent or (again[0] if again else new)
        if group_id is None:
            moved, self.said_end = not self.said_end, True
            self.call("end_tasks", incarnation=self.incarnation)
            return moved
        self.intent, submitted = group_id, self.state.submitted
        answer = self.call("admit", group_id, incarnation=self.incarnation)
        self.intent = None
        if not isinstance(answer, Admitted):
            return False
        if self.state.submitted > submitted:
            self.check_room()
        self.cursor += group_id == new
        self.start(answer)
        return True

    def check_room(self) -> None:
        settings, config = self.state.settings, self.config
        if len(self.state.groups) > (settings.max_staleness + 1) * settings.groups_per_step:
            raise BrokenPromiseError(f"{len(self.state.groups)} groups outstanding")
        if len(self.buffer.running()) > config.max_concurrent:
            raise BrokenPromiseError(f"{len(self.buffer.running())} groups running")

    def start(self, admitted: Admitted) -> None:
        self.executions.append(
            Execution(
                admitted.group_id, admitted.attempt, admitted.incarnation, self.engine_version, self.engine_history
            )
        )

    def runs(self, admitted: Admitted) -> bool:
        key = (admitted.group_id, admitted.attempt, admitted.incarnation)
        return any((each.group_id, each.attempt, each.incarnation) == key for each in self.executions)

    def do_execute(self, rng) -> bool:
        if not self.executions:
            return False
        each = rng.choice(self.executions)
        if each is self.executions[0] and rng.random() < self.lingering:
            return True
        if each.group is None:
            self.num_made += 1
            kind = rng.choices(["ready", "filtered", "failed"], [1, self.filtered_share, 0.05])[0]
            each.group = build_group(
                each.group_id,
                attempt=each.attempt,
                incarnation=each.incarnation,
                rewards=(0.0, 0.0 if kind == "filtered" else 1.0),
                version=each.version,
                uid=self.num_made,
                num_broken=kind == "failed",
            )
            self.sampled_by[self.num_made] = each.history
        written = self.journal.position
        self.call("commit", each.group)
        if self.journal.position > written and each.incarnation != self.incarnation:
            raise BrokenPromiseError("a commit of an older incarnation was stored")
        if rng.random() > 0.1:  # else it commits twice, or late
            self.executions.remove(each)
        return True

    def do_lose_shard(self, rng) -> bool:
        running = {(each.group_id, each.attempt) for each in self.buffer.running()}
        live = [e for e in self.executions if (e.group_id, e.attempt) in running and e.incarnation == self.incarnation]
        if not live:
            return False
        each = rng.choice(live)
        answer = self.call("attempt", each.group_id, replaces=each.attempt, incarnation=self.incarnation)
        if rng.random() < 0.5:  # else a zombie, which commits late
            self.executions.remove(each)
        if answer is not None and not self.runs(answer):
            self.start(answer)
        return True

    def do_reconcile(self, rng) -> bool:
        for each in self.buffer.running():
            if not self.runs(each):
                answer = self.call("attempt", each.group_id, replaces=each.attempt, incarnation=self.incarnation)
                if answer is not None:
                    self.start(answer)
                return True
        return False

    def do_cancel(self, rng) -> bool:
        running = self.buffer.running()
        if running:
            self.call("cancel", rng.choice(running).group_id, incarnation=self.incarnation)
        return bool(running)

    def do_fail(self, rng) -> bool:
        running = self.buffer.running()
        if running:
            self.call("fail", rng.choice(running).group_id, reason="no_data", incarnation=self.incarnation)
        return bool(running)

    def do_swap(self, rng) -> bool:
        if self.swap_to is None:
            return False
        (self.engine_history, self.engine_version), self.swap_to = self.swap_to, None
        return True

    # --- reader
    def do_read(self, rng) -> bool:
        page = self.call("read", after=self.reader, limit=3)
        moved, self.reader = page.cursor != self.reader, page.cursor
        if page.rewound:
            self.seen = {number: key for number, key in self.seen.items() if number < page.cursor[1]}
        self.lossy |= page.num_taken > 0
        for number, content in page.entries:
            if isinstance(content, TrajectoryGroup):
                if number in self.seen:
                    raise BrokenPromiseError(f"record {number} was read twice")
                self.seen[number] = content.group_id
        return moved

    # --- what must hold
    def check(self) -> None:
        state = self.state
        if state.submitted != len(state.groups) + sum(state.ended.values()):
            raise BrokenPromiseError(f"ledger: {state.submitted} submitted, {len(state.groups)} held, {state.ended}")
        in_batches = Counter(group_id for batch in state.batches.values() for group_id in batch.group_ids)
        if in_batches and max(in_batches.values()) > 1:
            raise BrokenPromiseError("a group in two open batches")
        held = {key for key, each in state.groups.items() if each.state in (GroupState.LEASED, GroupState.ACKED)}
        if held != set(in_batches):
            raise BrokenPromiseError("leased and acked groups are not those of the open batches")

    def finish(self, rng: random.Random) -> None:
        """Let everybody work without faults until the run ends, then check what it promised."""
        idle = 0
        for turn in range(4000):
            moved = False
            for name in rng.sample(self.PROGRESS, len(self.PROGRESS)):
                moved |= self.step(name, rng)
            if turn % 40 == 39 or not moved:
                self.step("wait", rng)
            if self.ended and not moved:
                break
            idle = 0 if moved else idle + 1
            if idle > 80:
                states = Counter(each.state.value for each in self.state.groups.values())
                raise BrokenPromiseError(f"deadlock: {states}, capacity {self.buffer.status().capacity}")
        else:
            raise BrokenPromiseError("no end")
        self.restart()
        self.check_end()

    def check_end(self) -> None:
        if self.state.groups:
            raise BrokenPromiseError(f"the end with groups outstanding: {self.state.groups}")
        ends = [(group_id, state) for _, record in self.journal.log for group_id, state in end_states(record)]
        settled = Counter(parse_group_id(group_id)[1] for group_id, state in ends if state in SETTLED_STATES)
        wrong = [task for task in range(self.num_tasks) if settled[task] != 1]
        if (wrong and not self.state.is_converged) or max(settled.values(), default=1) > 1:
            raise BrokenPromiseError(f"tasks not settled once: {wrong} {settled}")
        consumed = sorted(group_id for group_id, state in ends if state is GroupState.CONSUMED)
        trained = sorted(group_id for batch in self.history for group_id in batch)
        if consumed != trained:
            raise BrokenPromiseError(f"consumed {consumed}, but the surviving weights were trained on {trained}")
        if not self.fixed and self.engine_history != self.history:
            raise BrokenPromiseError("the engines end with other weights than the learner")
        while self.do_read(random.Random(0)):
            pass
        committed = {number for number, record in self.journal.log if isinstance(record, GroupCommitted)}
        if set(self.seen) - committed or (not self.lossy and set(self.seen) != committed):
            raise BrokenPromiseError("a reader that kept up has not seen what was committed")
