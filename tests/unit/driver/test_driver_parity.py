"""Engines against learner: what is measured, which engine leaves, and when the run ends."""

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest

from medvista_ray.driver.checkpoint import load_record
from medvista_ray.errors import ParityError
from medvista_ray.types.delivery import ProbeReport

MakeWorld = Callable[..., Any]
NAN = float("nan")


class ScriptedProbe:
    """Measures every engine that serves: the script has the differences of each probe in order, then all are fine."""

    def __init__(self, *script: dict[str, float]) -> None:
        self.script = list(script)
        self.versions: list[int] = []
        self.engines: Any = None

    async def __call__(self, version: int) -> ProbeReport:
        self.versions.append(version)
        said = self.script.pop(0) if self.script else {}
        names = [engine.engine_id for engine in self.engines.engine_set().engines]
        return ProbeReport(diffs={name: said.get(name, 1e-5) for name in names})


def make_probed(make_world: MakeWorld, probe: ScriptedProbe, **changes: Any) -> Any:
    world = make_world(probe=probe, **changes)
    probe.engines = world.engines
    return world


async def test_parity_is_probed_at_the_first_and_every_nth_publish(make_world: MakeWorld) -> None:
    probe = ScriptedProbe({"engine-1": 2e-4})
    outcome = await make_probed(make_world, probe, num_tasks=16, train_config={"probe_every": 3}).run()
    assert probe.versions == [1, 4, 7]
    assert outcome.summary["max_abs_logprob_diff"] == 2e-4


@pytest.mark.parametrize("diff", [0.5, math.inf, NAN])
async def test_the_engine_that_a_probe_names_is_replaced_and_all_are_measured_again(
    make_world: MakeWorld, diff: float
) -> None:
    probe = ScriptedProbe({"engine-1": diff})
    world = make_probed(make_world, probe, num_tasks=4)
    outcome = await world.run()
    assert probe.versions == [1, 1]
    assert world.engines.quarantined == ["engine-1"]
    assert [engine.engine_id for engine in world.engines.engine_set().engines] == ["engine-0", "engine-2"]
    assert world.env_pool.engine_sets[-1] == world.engines.engine_set()
    assert world.engines.versions == [0, 1, 2]
    assert outcome.summary["max_abs_logprob_diff"] == (diff if diff == 0.5 else sys.float_info.max)
    counters = world.telemetry.counters()
    assert (counters["engine/quarantined/engines"], counters["engine/recovered/engines"]) == (1, 1)
    assert load_record(outcome.checkpoint).counters == counters | {
        "driver/elapsed/s": pytest.approx(0, abs=60)  # JSON has no infinity: a counter is always a number
    }


@pytest.mark.parametrize(("diff", "words"), [(0.5, r"0\.5 nats"), (NAN, "no finite number")])
async def test_an_engine_that_differs_after_the_replacement_fails_the_run(
    make_world: MakeWorld, diff: float, words: str
) -> None:
    probe = ScriptedProbe({"engine-1": diff}, {"engine-2": diff})
    with pytest.raises(ParityError, match=rf"{words} in the probe .*engine-2.*learner.max_logprob_diff is 0.001"):
        await make_probed(make_world, probe).run()


async def test_a_probe_without_engines_is_no_measurement_and_is_due_again(make_world: MakeWorld) -> None:
    versions: list[int] = []

    async def probe(version: int) -> ProbeReport:
        versions.append(version)
        return ProbeReport(diffs={} if version < 3 else {"engine-0": 1e-5})

    world = make_world(probe=probe, num_tasks=16, train_config={"probe_every": 4})
    outcome = await world.run()
    assert versions == [1, 2, 3, 7]
    assert world.telemetry.counters()["learner/probes/count"] == 2
    assert outcome.summary["max_abs_logprob_diff"] == 1e-5


@pytest.mark.parametrize("diff", [0.1, NAN])
async def test_an_excess_on_trained_tokens_starts_a_probe_that_names_the_engine(
    make_world: MakeWorld, diff: float
) -> None:
    probe = ScriptedProbe({}, {"engine-0": 0.2})  # the publish of version 1 is fine
    world = make_probed(make_world, probe)
    world.learner.max_abs_logprob_diffs = {1: diff, 2: 0.1}  # some of version 2 are from the engine that has left
    outcome = await world.run()
    assert probe.versions == [1, 2, 2]
    assert world.engines.quarantined == ["engine-0"]
    assert outcome.policy_version == 6
    assert outcome.summary["max_abs_logprob_diff"] == (0.2 if diff == 0.1 else sys.float_info.max)


async def test_without_a_probe_every_engine_is_suspect(make_world: MakeWorld) -> None:
    world = make_world()
    world.learner.max_abs_logprob_diffs = {1: 0.1, 2: 1e-5, 3: 0.1}
    await world.run()
    assert world.engines.quarantined == ["engine-0", "engine-1", "engine-2", "engine-3"]
    assert world.engines.num_dead == 0


async def test_an_excess_that_replacing_engines_has_not_ended_fails_the_run(make_world: MakeWorld) -> None:
    world = make_world()
    world.learner.max_abs_logprob_diffs = {1: 0.1, 2: 0.1, 3: 0.2}
    with pytest.raises(ParityError, match=r"0\.2 nats on the tokens of version 3"):
        await world.run()


async def test_a_second_excess_fails_the_run_at_once_when_no_engine_was_at_fault(make_world: MakeWorld) -> None:
    world = make_probed(make_world, ScriptedProbe())
    world.learner.max_abs_logprob_diffs = {1: 0.1, 2: 0.2}
    with pytest.raises(ParityError, match=r"0\.2 nats on the tokens of version 2"):
        await world.run()
    assert world.engines.quarantined == []
