import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from test_tools_runner import is_running, is_zombie
from test_tools_views import GREY, make_shelf

from medvista_ray.errors import ConfigError
from medvista_ray.tools.base import CallKey
from medvista_ray.tools.execution import failed
from medvista_ray.tools.frames import Call
from medvista_ray.tools.registry import service_specs
from medvista_ray.tools.runner import make_tool_runner
from medvista_ray.tools.service import ServiceState, ToolService
from medvista_ray.tools.service_queue import CallQueue, PendingCall, ServiceCounters
from medvista_ray.types.tool_calls import ToolCall, ToolFailure

PACK = "tools_service_pack"
KEY = CallKey(trajectory="0/1/0#2", turn=3)


@pytest.fixture(scope="module")
def service():
    service = ToolService(f"{PACK}:Counts", limit_s=3.0)
    yield service
    pid = service.health().pid
    service.close()
    service.close()
    assert service.health().state is ServiceState.CLOSED
    assert pid is None or not is_running(pid)
    assert run(service).failure is ToolFailure.FAILED


def run(service, *, tool="counts", timeout_s=3.0, shelf=None, **arguments):
    shelf = shelf or make_shelf()
    return service.call_sync(tool, arguments, records=shelf.records, load=shelf.load, key=KEY, timeout_s=timeout_s)


def run_together(service, *all_arguments):
    with ThreadPoolExecutor(len(all_arguments)) as threads:
        return list(threads.map(lambda arguments: run(service, **arguments), all_arguments))


def text_of(execution):
    assert execution.failure is None, execution.error
    return [int(part) for part in execution.output.text.split("/")]


def test_calls_that_wait_run_together_and_weights_load_once(service):
    first = text_of(run(service))
    batches = [text_of(execution) for execution in run_together(service, *[{"sleep_s": 0.02}] * 9)]
    assert {pid for pid, *_ in batches} == {first[0]} != {os.getpid()}
    assert {loads for _, loads, *_ in batches} == {1}
    sizes = [size for _, _, size, _ in batches]
    assert max(sizes) == 4  # never more than max_batch
    metrics = service.metrics()
    assert metrics.max_batch == 4
    assert metrics.num_calls >= 10
    assert metrics.num_batches < metrics.num_calls
    assert 1.0 < metrics.mean_batch <= 4.0
    assert 0.0 < metrics.latency_p50_s <= metrics.latency_p90_s
    assert metrics.queue_depth == 0


def test_images_go_there_and_come_back_with_their_masks(service):
    shelf = make_shelf()
    execution = run(service, shelf=shelf, image=0)
    (picture,) = execution.output.images
    assert (picture.pixels == 255 - GREY).all()
    assert picture.mask.all()
    assert picture.mask.shape == GREY.shape[:2]


def test_one_bad_call_does_not_fail_its_neighbours(service):
    executions = run_together(service, {"raises": True}, {}, {"nonsense": True}, {"image": 99})
    assert [execution.failure for execution in executions] == [
        ToolFailure.FAILED,
        None,
        ToolFailure.BAD_ARGUMENT,
        ToolFailure.BAD_ARGUMENT,
    ]
    assert "boom" in executions[0].error


def test_a_process_that_dies_is_started_again_and_its_calls_run_once_more(service):
    before = text_of(run(service))[0]
    restarts = service.health().num_restarts
    executions = run_together(service, {"dies": "once"}, {})
    assert text_of(executions[0])[0] != before
    assert text_of(executions[0])[3] == 1  # the attempt, by which a tool with effects knows a retry
    assert text_of(executions[1])[2] in (1, 2)
    assert service.health().num_restarts == restarts + 1
    hopeless, other = run_together(service, {"dies": "always"}, {})
    assert hopeless.failure is ToolFailure.FAILED
    assert "died" in hopeless.error
    assert other.failure is None  # the second attempts run alone


def test_a_process_killed_while_nothing_runs_is_replaced_without_a_retry(service):
    pid = text_of(run(service))[0]
    os.kill(pid, signal.SIGKILL)
    while service.health().state is not ServiceState.DEAD:
        time.sleep(0.01)
    assert text_of(run(service))[3] == 0


def test_a_hung_batch_times_out_and_its_process_is_killed():
    service = ToolService(f"{PACK}:Counts", limit_s=0.5)
    try:
        pid = text_of(run(service))[0]
        started = time.monotonic()
        execution = run(service, timeout_s=0.5, sleep_s=600)
        assert execution.failure is ToolFailure.TIMED_OUT
        assert time.monotonic() - started < 5
        assert text_of(run(service))[0] != pid
        assert not is_running(pid)
    finally:
        service.close()


def test_a_short_budget_ends_the_call_and_not_the_process(service):
    pid = text_of(run(service))[0]
    with ThreadPoolExecutor(2) as threads:
        patient = threads.submit(run, service, sleep_s=0.4)
        time.sleep(0.1)
        hurried = threads.submit(run, service, timeout_s=0.05)  # waits behind the other one
        assert hurried.result().failure is ToolFailure.TIMED_OUT
        assert not patient.done()
    assert text_of(patient.result())[0] == pid == text_of(run(service))[0]
    assert run(service, timeout_s=-1.0).failure is ToolFailure.TIMED_OUT


def test_loading_counts_towards_no_deadline_and_has_its_own():
    slow = ToolService(f"{PACK}:SlowStart", limit_s=0.5)
    never = ToolService(f"{PACK}:NeverStarts", limit_s=0.5, start_timeout_s=0.5)
    try:
        assert not slow.health().is_loaded
        assert run(slow, tool="slow_start", timeout_s=0.5).output.text == "loaded"
        assert slow.health().is_loaded
        execution = run(never, tool="never_starts", timeout_s=0.5)
        assert execution.failure is ToolFailure.FAILED
        assert "did not start" in execution.error
        started = time.monotonic()
        assert run(never, tool="never_starts").failure is ToolFailure.FAILED
        assert time.monotonic() - started < 0.4  # right after, nobody waits for another start
        assert never.health().pid is None
    finally:
        slow.close()
        never.close()


def test_a_missing_package_is_typed_and_names_the_extra():
    runner = make_tool_runner([f"{PACK}:NotThere"], timeout_s=5)
    try:
        outcome = runner.run(ToolCall(name="not_there"), shelf=make_shelf(), key=KEY)
        assert outcome.failure is ToolFailure.NOT_INSTALLED
        assert "pip install 'medvista-ray[an_extra]'" in outcome.text
    finally:
        runner.close()


async def test_the_event_loop_goes_on_and_close_answers_what_waits():
    service = ToolService(f"{PACK}:Counts", limit_s=60)
    shelf = make_shelf()

    def call(**arguments):
        return asyncio.create_task(
            service.call("counts", arguments, records=shelf.records, load=shelf.load, key=KEY, timeout_s=60)
        )

    first = text_of(await call())
    hanging, waiting, cancelled = call(sleep_s=600), call(), call()
    await asyncio.sleep(0.2)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    await asyncio.to_thread(service.close)
    assert {(await task).failure for task in (hanging, waiting)} == {ToolFailure.FAILED}
    assert not is_running(first[0])


def test_the_process_ends_with_its_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys, threading
            sys.path[:0] = {[os.path.dirname(__file__)]!r}
            from medvista_ray.tools.base import CallKey
            from medvista_ray.tools.service import ToolService
            service = ToolService("tools_service_pack:Counts", limit_s=600)
            call = dict(records=(), load=None, key=CallKey(), timeout_s=600)
            print(service.call_sync("counts", {{}}, **call).output.text.split("/")[0], flush=True)
            service.call_sync("counts", {{"sleep_s": 600}}, **call)
            """
        )
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        time.sleep(0.2)
        parent.kill()
    deadline = time.monotonic() + 20
    while is_running(pid) and not is_zombie(pid):
        assert time.monotonic() < deadline, "the service outlived its parent"
        time.sleep(0.05)


def test_a_tool_that_is_no_service_is_refused():
    with pytest.raises(ConfigError, match="no ServiceTool"):
        ToolService("zoom", limit_s=1)
    with pytest.raises(ConfigError, match="cost of a service"):
        service_specs([f"{PACK}:Pretends"])
    assert service_specs(["zoom", f"{PACK}:Counts", "segment", "read_text"]) == {
        "counts": f"{PACK}:Counts",
        "segment": "segment",
        "read_text": "read_text",
    }


def test_a_lent_service_stays_open():
    service = ToolService(f"{PACK}:Counts", limit_s=3)
    runner = make_tool_runner([f"{PACK}:Counts"], timeout_s=3, services={"counts": service})
    runner.close()
    assert service.health().state is ServiceState.IDLE
    service.close()


# --- the queue
def pending(*, at=0.0, deadline=10.0, attempt=0):
    call = Call(tool="counts", arguments="{}", records=(), key=KEY)
    return PendingCall(call=call, load=bytes, submitted_s=at, deadline_s=deadline, attempt=attempt)


def test_a_batch_is_first_in_first_out_and_second_attempts_come_alone():
    queue = CallQueue()
    calls = [pending() for _ in range(5)]
    assert all(queue.put(call) for call in calls)
    assert queue.take(3, wait_s=0.0) == calls[:3]
    retried = [pending(attempt=1), pending(attempt=1)]
    queue.put_back(retried)
    assert queue.take(3, wait_s=10.0) == retried[:1]  # and nobody waits for others to join
    assert queue.take(3, wait_s=0.0) == retried[1:]
    assert queue.take(3, wait_s=0.0) == calls[3:]
    queue.put(calls[0])
    queue.put_back([retried[0]])
    queue.put_back([calls[1]])
    assert queue.take(3, wait_s=0.0) == [calls[1]]


def test_a_full_batch_does_not_wait_and_a_small_one_waits_as_long_as_it_may():
    queue = CallQueue()
    for _ in range(2):
        queue.put(pending())
    started = time.monotonic()
    assert len(queue.take(2, wait_s=60.0)) == 2
    queue.put(pending())
    assert len(queue.take(2, wait_s=0.05)) == 1
    assert 0.05 <= time.monotonic() - started < 30


def test_clocks_stand_still_while_the_service_starts():
    early, late = pending(at=0.0, deadline=10.0), pending(at=4.0, deadline=14.0)
    queue = CallQueue()
    queue.put(early)
    queue.put(late)
    queue.pause_since(1.0, 6.0)  # it started at 1 and was ready at 6
    assert (early.deadline_s, late.deadline_s) == (15.0, 16.0)
    assert queue.take_overdue(15.5) == [early]
    assert queue.close() == [late]
    assert not queue.put(early)
    assert not queue.put_back([early])
    assert queue.take(1, wait_s=0.0) == []


def test_counters_say_what_happened():
    counters = ServiceCounters()
    assert counters.read(queue_depth=0, num_restarts=0).mean_batch == 0.0
    counters.add_batch(3)
    counters.add_batch(1)
    now = time.monotonic()
    for age in range(1, 11):
        counters.add_answer(pending(at=now - age), failed(ToolFailure.TIMED_OUT, ""))
    metrics = counters.read(queue_depth=2, num_restarts=1)
    assert (metrics.num_batches, metrics.mean_batch, metrics.max_batch, metrics.queue_depth) == (2, 2.0, 3, 2)
    assert metrics.failures == {"timed_out": 10}
    assert (round(metrics.latency_p50_s), round(metrics.latency_p90_s)) == (6, 10)
