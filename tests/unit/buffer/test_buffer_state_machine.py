"""The protocol's promises under random schedules, with the buffer killed around any write and everybody else dying.

The same world as the executable model of the protocol, around the real code. Every run ends without faults: then each
task must be settled once, and what is consumed must be what the surviving weights were trained on.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from medvista_ray.buffer import gate, leases
from medvista_ray.buffer.entries import LedgerState
from medvista_ray.buffer.ledger import Ledger
from medvista_ray.buffer.records import BatchesReturned, BatchSealed, GroupAdmitted, GroupEnded
from medvista_ray.buffer.replay_buffer import ReplayBuffer
from medvista_ray.errors import RunFailedError
from medvista_ray.types.delivery import GroupState

MODES = ("builtin", "external", "fixed")
PICKS = st.integers(0, 2**32 - 1)
KILLS = st.sampled_from([None] * 12 + [("before", 0), ("before", 1), ("after", 0), ("after", 1), ("lost", 0)])
SHORT = settings(
    max_examples=30,
    stateful_step_count=30,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
LONG = settings(SHORT, max_examples=2000, stateful_step_count=60, derandomize=False)
NO_SHRINK = settings(SHORT, max_examples=3000, phases=[Phase.generate], report_multiple_bugs=False)


def machine_of(mode, make_world):
    class Machine(RuleBasedStateMachine):
        num_finished = 0  # worlds that were brought to their end; every step of one checks the promises

        @initialize(seed=PICKS)
        def begin(self, seed):
            self.world = make_world(mode, seed)

        @rule(name=st.sampled_from(make_world.PROGRESS), pick=PICKS, kill=KILLS)
        def work(self, name, pick, kill):
            self.world.step(name, random.Random(pick), kill)

        @rule(name=st.sampled_from(make_world.FAULTS), pick=PICKS, kill=KILLS)
        def suffer(self, name, pick, kill):
            self.world.step(name, random.Random(pick), kill)

        @rule(pick=PICKS, num_steps=st.integers(1, 40))
        def rush(self, pick, num_steps):
            self.world.rush(random.Random(pick), num_steps)

        def teardown(self):
            if not self.world.broken:
                self.world.finish(random.Random(0))
                Machine.num_finished += 1

    return Machine


@pytest.mark.parametrize("mode", MODES)
def test_promises_hold_under_any_schedule(mode, make_world):
    machine = machine_of(mode, make_world)
    run_state_machine_as_test(machine, settings=SHORT)
    assert machine.num_finished >= SHORT.max_examples


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
def test_promises_hold_under_many_schedules(mode, make_world):
    machine = machine_of(mode, make_world)
    run_state_machine_as_test(machine, settings=LONG)
    assert machine.num_finished >= LONG.max_examples


# --- a machine that finds nothing proves nothing: each rule switched off must break a promise
def _going_back_alone(ledger: Ledger, batch_id: str) -> BatchesReturned:
    return BatchesReturned(batch_ids=(batch_id,))


def _handed_out_at_any_age(ledger: Ledger, train_from_version: int) -> list[str]:
    return []


def _accepts_any_incarnation(ledger: Ledger, group) -> bool:
    entry = ledger.running(group.group_id)
    return entry is not None and group.attempt == entry.attempt


def _stale_forgotten(ledger: Ledger, group_id: str, state: GroupState) -> GroupEnded:
    return GroupEnded(group_id=group_id, state=state, issue_again=False)


def _contains_nothing(past: LedgerState, present: LedgerState, *, contained_batch_ids, policy_version, position):
    return _resumption(past, present, contained_batch_ids=(), policy_version=policy_version, position=position)


def _keeps_open_batches(self, record):
    batches, self.state.batches = self.state.batches, {}
    _attach(self, record)
    self.state.batches = batches


def _unwritten(kind):
    def write(self, record, group=None):
        if isinstance(record, kind):
            self._apply(self._journal.position, record)
        else:
            _write(self, record, group)

    return write


def _nothing_is_known(ledger: Ledger, group_id: str) -> bool:
    return False


_resumption, _attach, _write = leases.resumption, Ledger._attach, ReplayBuffer._write

FAULTS = {
    "a lease goes back alone": ("builtin", leases, "going_back", _going_back_alone),
    "old groups are handed out": ("external", leases, "stale", _handed_out_at_any_age),
    "commits of an older incarnation count": ("builtin", gate, "accepts", _accepts_any_incarnation),
    "a cancelled task is not issued again": ("external", gate, "unfinished", _stale_forgotten),
    "a resume forgets what its weights contain": ("builtin", leases, "resumption", _contains_nothing),
    "a new consumer keeps the batches of the old": ("external", Ledger, "_attach", _keeps_open_batches),
    "an admission is not written": ("builtin", ReplayBuffer, "_write", _unwritten(GroupAdmitted)),
    "a lease is not written": ("fixed", ReplayBuffer, "_write", _unwritten(BatchSealed)),
    "an admission cannot be repeated": ("fixed", gate, "is_known", _nothing_is_known),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_rule_switched_off_is_found(fault, make_world, broken_promise, monkeypatch):
    mode, owner, name, broken = FAULTS[fault]
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises((broken_promise, RunFailedError, KeyError)):
        run_state_machine_as_test(machine_of(mode, make_world), settings=NO_SHRINK)
