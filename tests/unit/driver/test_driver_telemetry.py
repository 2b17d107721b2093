from typing import Any

from medvista_ray.driver.telemetry import Progress, Telemetry
from medvista_ray.testing.clock import ManualClock
from medvista_ray.testing.records import make_group
from medvista_ray.testing.rollout import make_receipt
from medvista_ray.types.delivery import BufferStatus, CommitResult, TrainReport


def make_status(**counts: int) -> BufferStatus:
    return BufferStatus(
        counts={"submitted": sum(counts.values()), **counts},
        capacity=1,
        policy_version=1,
        incarnation=0,
        fence=1,
        num_filtered_in_a_row=0,
        admission_ended=False,
    )


def make_report(version: int, staleness: tuple[int, ...], **changes: Any) -> TrainReport:
    return TrainReport(
        lease_id=f"b{version}",
        train_from_version=version,
        group_ids=tuple(f"0/{index}/0" for index in range(len(staleness))),
        staleness=staleness,
        **changes,
    )


def test_rates_are_sampled_tokens_over_the_time_of_the_rollout() -> None:
    clock = ManualClock(100.0)
    telemetry = Telemetry(clock=clock)
    clock.advance(50)  # loading
    telemetry.start()
    telemetry.start()  # only the first counts
    telemetry.on_receipt(make_receipt(make_group(rewards=(0.0, 1.0, None)), CommitResult.ACCEPTED))
    clock.advance(2)
    assert telemetry.summary(make_status())["rollout_tokens_per_s"] == 2.0  # two live members of two tokens, 2 s


def test_a_superseded_group_is_counted_and_nothing_else() -> None:
    telemetry = Telemetry(clock=ManualClock())
    telemetry.start()
    telemetry.on_receipt(make_receipt(make_group(), CommitResult.SUPERSEDED))
    assert telemetry.counters() == {"rollout/superseded/groups": 1.0}


def test_staleness_is_over_all_trained_groups() -> None:
    telemetry = Telemetry(clock=ManualClock())
    telemetry.on_step(make_report(0, (0, 0, 0, 2)), make_status())
    telemetry.on_step(make_report(1, (1, 1)), make_status(consumed=6))
    assert telemetry.summary(make_status())["staleness"] == {"mean": 4 / 6, "max": 2}


def test_a_difference_that_was_never_measured_is_none() -> None:
    telemetry = Telemetry(clock=ManualClock())
    telemetry.on_step(make_report(0, (0,)), make_status())
    assert telemetry.summary(make_status())["max_abs_logprob_diff"] is None
    telemetry.on_step(make_report(1, (0,), max_abs_logprob_diff=3e-4), make_status())
    telemetry.on_parity(1e-4)
    assert telemetry.summary(make_status())["max_abs_logprob_diff"] == 3e-4


def test_a_step_has_the_rewards_since_the_one_before() -> None:
    written: dict[int, Any] = {}
    telemetry = Telemetry(write=written.__setitem__, clock=ManualClock())
    telemetry.on_receipt(make_receipt(make_group(rewards=(1.0, 0.0)), CommitResult.ACCEPTED))
    telemetry.on_receipt(make_receipt(make_group(rewards=(1.0, 1.0)), CommitResult.ACCEPTED))
    tools = {"tools/segment_restarts/count": 1.0}
    telemetry.on_step(make_report(0, (0,), metrics={"learner/loss/mean": 0.25}), make_status(), tools=tools)
    telemetry.on_step(make_report(1, (0,)), make_status())
    assert written[1]["rollout/reward/mean"] == 0.75
    assert written[1]["rollout/equal_rewards/share"] == 0.5
    assert written[1]["learner/loss/mean"] == 0.25
    assert written[1]["tools/segment_restarts/count"] == 1.0
    assert "rollout/reward/mean" not in written[2]


def test_counters_and_elapsed_time_survive_a_resume() -> None:
    clock = ManualClock()
    first = Telemetry(clock=clock)
    first.start()
    first.on_receipt(make_receipt(make_group(), CommitResult.ACCEPTED))
    first.keep_max("buffer/staleness/max", 2)
    clock.advance(4)
    second = Telemetry(clock=clock)
    second.restore(first.state())
    clock.advance(100)  # the time between two processes
    second.start()
    clock.advance(4)
    summary = second.summary(make_status())
    assert summary["rollout_tokens_per_s"] == 0.5
    assert summary["staleness"] == {"mean": 0.0, "max": 2}


def test_progress_says_where_a_run_is() -> None:
    shown: list[Progress] = []
    telemetry = Telemetry(on_progress=shown.append, clock=ManualClock())
    telemetry.on_receipt(make_receipt(make_group(rewards=(1.0, 0.5)), CommitResult.ACCEPTED))
    waits = {"train": "group_incomplete"}
    telemetry.show(make_status(consumed=3, filtered=2, failed=1, stale=7, running=4, ready=5), num_tasks=9, waits=waits)
    waits.clear()
    assert (shown[0].num_settled, shown[0].num_tasks, shown[0].num_running, shown[0].num_ready) == (6, 9, 4, 5)
    assert shown[0].reward_mean == 0.75
    assert shown[0].waits == {"train": "group_incomplete"}


def test_what_died_or_went_back_is_in_every_line_and_in_the_summary() -> None:
    written: dict[int, Any] = {}
    telemetry = Telemetry(write=written.__setitem__, clock=ManualClock())
    telemetry.on_step(make_report(0, (0,)), make_status())
    telemetry.count("env/recovered/shards", 2)
    telemetry.on_step(make_report(1, (0,)), make_status())
    assert [written[step]["env/recovered/shards"] for step in (1, 2)] == [0.0, 2.0]
    assert telemetry.summary(make_status())["recoveries"] == {"env/recovered/shards": 2}
