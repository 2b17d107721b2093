"""Workers of the pool that do not start: only the tool that is to blame is lost."""

import os
import sys
import time
from dataclasses import replace

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(__file__)), "unit", "tools"))

from medvista_ray.tools.base import CallKey
from medvista_ray.tools.execution import Request
from medvista_ray.tools.pool import ToolPool, WorkerProcess
from medvista_ray.types.tool_calls import ToolFailure

PACK = "tools_fixture_pack"
PRINTS = Request(tool="prints", arguments="{}", records=(), load=None, key=CallKey(), timeout_s=20.0)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_tool_that_hangs_at_its_start_is_left_out(num_workers):
    targets = {"prints": f"{PACK}:Prints", "hangs_at_start": f"{PACK}:HangsAtStart"}
    pool = ToolPool(targets, num_workers=num_workers, start_timeout_s=6.0)
    try:
        before = pool.pids
        hurried = pool.call_sync(replace(PRINTS, expires_s=time.monotonic() + 0.3))
        assert hurried.failure is ToolFailure.TIMED_OUT  # the budget holds while the worker starts
        assert pool.pids == before  # which goes on
        end = pool.call_sync(PRINTS)
        assert end.failure is None, end.error
        assert int(end.output.text) in pool.pids
        blamed = pool.call_sync(replace(PRINTS, tool="hangs_at_start"))
        assert blamed.failure is ToolFailure.FAILED
        assert "hangs_at_start keeps its worker from starting" in blamed.error
    finally:
        pool.close()


def test_a_tool_that_dies_at_its_start_gets_a_second_try_and_is_left_out():
    targets = {"dies_at_start": f"{PACK}:DiesAtStart", "prints": f"{PACK}:Prints"}
    pool = ToolPool(targets, num_workers=1)
    try:
        end = pool.call_sync(PRINTS)
        assert end.failure is None, end.error
        assert "dies_at_start" in pool.call_sync(replace(PRINTS, tool="dies_at_start")).error
    finally:
        pool.close()


def test_a_worker_that_is_free_for_long_before_its_first_call_has_started_in_time():
    worker = WorkerProcess({"prints": f"{PACK}:Prints"}, start_timeout_s=5.0)
    try:
        time.sleep(5.1)
        assert worker.wait_ready()
    finally:
        worker.kill()
