"""The process of a tool service: deaths, hangs, starts and ends."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from medvista_ray.tools.base import CallKey
from medvista_ray.tools.execution import Request
from medvista_ray.tools.service import ServiceState, ToolService
from medvista_ray.types.tool_calls import ToolFailure

PACK = "tools_service_pack"
KEY = CallKey(trajectory="0/1/0#2", turn=3)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


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


def run(service, *, tool="counts", timeout_s=3.0, **arguments):
    return service.call_sync(make_request(tool, timeout_s, arguments))


def make_request(tool, timeout_s, arguments):
    return Request(tool=tool, arguments=json.dumps(arguments), records=(), load=None, key=KEY, timeout_s=timeout_s)


def run_together(service, *all_arguments):
    with ThreadPoolExecutor(len(all_arguments)) as threads:
        return list(threads.map(lambda arguments: run(service, **arguments), all_arguments))


def text_of(execution):
    assert execution.failure is None, execution.error
    return [int(part) for part in execution.output.text.split("/")]


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
        patient = threads.submit(run, service, sleep_s=1.5)
        time.sleep(0.2)
        hurried = threads.submit(run, service, timeout_s=0.05)  # waits behind the other one
        assert hurried.result().failure is ToolFailure.TIMED_OUT
        late = replace(make_request("counts", 3.0, {}), expires_s=time.monotonic() + 0.05)
        assert threads.submit(service.call_sync, late).result().failure is ToolFailure.TIMED_OUT
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
        assert "never_starts" in execution.error
        assert run(never, tool="never_starts").failure is ToolFailure.FAILED
        assert never.health().num_restarts == 0  # right after, nobody waits for another start
        assert never.health().pid is None
        never._no_start_before_s = 0.0
        assert run(never, tool="never_starts").failure is ToolFailure.FAILED
        assert never.health().num_restarts == 1
        assert never._no_start_before_s > time.monotonic() + 7  # the pause is twice as long
    finally:
        slow.close()
        never.close()


def test_the_budget_of_an_episode_ends_the_wait_for_a_start():
    service = ToolService(f"{PACK}:NeverStarts", limit_s=60)
    try:
        request = replace(make_request("never_starts", 60, {}), expires_s=time.monotonic() + 0.5)
        with ThreadPoolExecutor(2) as threads:  # one starts the process, the other waits in the queue
            executions = list(threads.map(service.call_sync, [request] * 2))
        assert {execution.failure for execution in executions} == {ToolFailure.TIMED_OUT}
        assert service.health().state is ServiceState.STARTING  # for others
    finally:
        service.close()


async def test_the_event_loop_goes_on_and_close_answers_what_waits():
    service = ToolService(f"{PACK}:Counts", limit_s=60)

    def call(**arguments):
        return asyncio.create_task(service.call(make_request("counts", 60, arguments)))

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
            from dataclasses import replace
            sys.path[:0] = {[os.path.dirname(os.path.dirname(__file__))]!r}
            from medvista_ray.tools.base import CallKey
            from medvista_ray.tools.execution import Request
            from medvista_ray.tools.service import ToolService
            service = ToolService("tools_service_pack:Counts", limit_s=600)
            call = Request(tool="counts", arguments="{{}}", records=(), load=None, key=CallKey(), timeout_s=600)
            print(service.call_sync(call).output.text.split("/")[0], flush=True)
            service.call_sync(replace(call, arguments='{{"sleep_s": 600}}'))
            """
        )
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        time.sleep(0.2)
        parent.kill()
    deadline = time.monotonic() + 20
    while is_running(pid):
        assert time.monotonic() < deadline, "the service outlived its parent"
        time.sleep(0.05)
