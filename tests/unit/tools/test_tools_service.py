import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from test_tools_runner import is_running
from test_tools_views import GREY, make_shelf

from medvista_ray.errors import ConfigError
from medvista_ray.tools.base import CallKey
from medvista_ray.tools.execution import Request, failed
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
    return service.call_sync(
        Request(
            tool=tool,
            arguments=json.dumps(arguments),
            records=shelf.records,
            load=shelf.load,
            key=KEY,
            timeout_s=timeout_s,
        )
    )


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


def test_an_output_that_cannot_be_sent_is_its_own_calls_fault(service):
    pid = text_of(run(service))[0]
    executions = run_together(service, {"bad": "list_mask"}, {}, {"bad": "no_parent"})
    assert [execution.failure for execution in executions] == [ToolFailure.FAILED, None, ToolFailure.FAILED]
    assert text_of(executions[1])[::3] == [pid, 0]  # the same process, in its first attempt


def test_the_number_of_threads_reaches_the_numeric_libraries():
    service = ToolService(f"{PACK}:Counts", limit_s=5.0, num_threads=3)
    try:
        names = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]
        assert run(service, timeout_s=5.0, variables=names).output.text == "3,3,3"
    finally:
        service.close()


def test_one_bad_batch_ends_nothing_else(service):
    good = Request(tool="counts", arguments="{}", records=(), load=None, key=KEY, timeout_s=3.0)
    for bad in (replace(good, key=None), replace(good, records=(object(),)), replace(good, arguments="{")):
        assert service.call_sync(bad).failure is ToolFailure.FAILED
        assert service.call_sync(good).failure is None


def test_a_missing_package_is_typed_and_names_the_extra():
    runner = make_tool_runner([f"{PACK}:NotThere"], timeout_s=5)
    try:
        outcome = runner.run(ToolCall(name="not_there"), shelf=make_shelf(), key=KEY)
        assert outcome.failure is ToolFailure.NOT_INSTALLED
        assert "pip install 'medvista-ray[an_extra]'" in outcome.text
    finally:
        runner.close()


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
def pending(*, at=0.0, deadline=10.0, attempt=0, expires=math.inf):
    request = Request(
        tool="counts", arguments="{}", records=(), load=bytes, key=KEY, timeout_s=deadline - at, expires_s=expires
    )
    return PendingCall(request=request, submitted_s=at, deadline_s=deadline, attempt=attempt)


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


def test_a_clock_stands_still_until_the_episode_is_over():
    call = pending(at=0.0, deadline=10.0, expires=12.0)
    call.pause_since(1.0, 2.0)
    assert call.deadline_s == 11.0
    call.pause_since(2.0, 60.0)
    assert call.deadline_s == 12.0
    late = pending(at=5.0, deadline=6.0)
    late.pause_since(1.0, 4.0)  # it came after the pause
    assert late.deadline_s == 6.0


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
