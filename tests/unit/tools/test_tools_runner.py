import asyncio
import os
import shutil
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from test_tools_dicom_info import make_header_shelf
from test_tools_views import GREY, make_shelf

from medvista_ray.errors import BlobMissingError, ConfigError, MissingPackageError
from medvista_ray.tools.base import CallKey, ToolCost
from medvista_ray.tools.registry import BUILTIN_TOOLS, load_tool, load_tools, runs_inline
from medvista_ray.tools.runner import make_tool_runner
from medvista_ray.types.tool_calls import ToolCall, ToolFailure

PACK = "tools_fixture_pack"
INLINE = ("zoom", "window_level", "measure", "flip_rotate", "get_slice", "dicom_info", "calculate")
KEY = CallKey(trajectory="0/1/0#2", turn=3)


def pool_of(runner):
    return next(iter(runner._executors.values()))


@pytest.fixture(scope="module")
def runner():
    names = ["Invert", "Raises", "Hangs", "Dies", "Prints", "NumpyNumbers", "ColdStart", "StartsChild", "Sleeps"]
    names += ["Headers", "OnlyHere"]
    runner = make_tool_runner([*INLINE, *(f"{PACK}:{name}" for name in names)], timeout_s=20, num_workers=1)
    yield runner
    pids = pool_of(runner).pids
    runner.close()
    runner.close()
    assert pids
    assert not any(is_running(pid) for pid in pids)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def run(runner, name, *, shelf=None, **arguments):
    return runner.run(ToolCall(name=name, arguments=arguments), shelf=shelf or make_shelf(), key=KEY)


@pytest.mark.parametrize(
    ("name", "arguments", "where"),
    [
        ("no_such", {}, "no tool"),
        ("zoom", {}, "bbox"),
        ("zoom", {"bbox": [0, 0, 10.5, 1]}, "bbox[2]"),
        ("zoom", {"bbox": [0, 0, True, 1]}, "bbox[2]"),
        ("zoom", {"bbox": "all"}, "bbox"),
        ("zoom", {"bbox": [0, 0, 9, 9], "extra": 1}, "extra"),
        ("zoom", {"bbox": [0, 0, 9, 9], "image": -1}, "image"),
        ("window_level", {"preset": "x" * 5000}, "preset"),
        ("window_level", {"center": 1e9, "width": 1}, "center"),
        ("measure", {"points": [[1, 2]]}, "points"),
        ("flip_rotate", {"operation": None}, "operation"),
    ],
)
def test_arguments_outside_of_the_schema_are_typed(runner, name, arguments, where):
    outcome = run(runner, name, **arguments)
    assert outcome.failure is ToolFailure.BAD_SCHEMA
    assert where in outcome.text
    assert outcome.images == ()
    assert len(outcome.text) < 300


@pytest.mark.parametrize(
    "call",
    [
        {"name": "zoom", "arguments": {"bbox": [333, 0, 667, 333]}},
        {"name": "window_level", "arguments": {"preset": "bone"}},
        {"name": "flip_rotate", "arguments": {"operation": "rotate_90"}},
    ],
)
def test_the_shortest_calls_work(runner, call):
    outcome = run(runner, call["name"], **call["arguments"])
    assert outcome.failure is None
    assert len(outcome.images) == 1


def test_sense_is_a_bad_argument_not_a_bad_schema(runner):
    assert run(runner, "zoom", bbox=[9, 9, 9, 9]).failure is ToolFailure.BAD_ARGUMENT
    assert run(runner, "zoom", bbox=[0, 0, 1001, 1]).failure is ToolFailure.BAD_ARGUMENT
    assert run(runner, "measure", points=[[10, 20], [30, 40]]).failure is ToolFailure.BAD_ARGUMENT  # no spacing
    assert run(runner, "zoom", bbox=[0, 0, 9, 9], image=5).failure is ToolFailure.BAD_ARGUMENT


@pytest.mark.parametrize(
    ("kind", "failure"),
    [
        ("value", ToolFailure.FAILED),
        ("exit", ToolFailure.FAILED),
        ("wrong_type", ToolFailure.FAILED),
        ("wrong_image", ToolFailure.FAILED),
        ("wrong_parent", ToolFailure.FAILED),
        ("line", ToolFailure.FAILED),
        ("empty", ToolFailure.FAILED),
        ("list_mask", ToolFailure.FAILED),
        ("no_parent", ToolFailure.FAILED),
        ("list_transform", ToolFailure.FAILED),
        ("text_view", ToolFailure.FAILED),
        ("object_slice", ToolFailure.FAILED),
        ("foreign_slice", ToolFailure.FAILED),
        ("no_images", ToolFailure.FAILED),
        ("unknown_digest", ToolFailure.FAILED),
        ("argument", ToolFailure.BAD_ARGUMENT),
        ("import", ToolFailure.NOT_INSTALLED),
        ("nothing", None),
    ],
)
def test_whatever_a_tool_does_is_typed_and_leaves_its_worker_in_peace(runner, kind, failure):
    pids, shelf = pool_of(runner).pids, make_shelf()
    outcome = run(runner, "raises", kind=kind, shelf=shelf)
    assert outcome.failure is failure
    assert pool_of(runner).pids == pids
    assert len(shelf.records) == 2
    assert len(outcome.text) < 300
    outcome.text.encode()


def test_a_hanging_tool_is_killed_at_its_deadline_and_its_worker_replaced(runner):
    run(runner, "prints")
    (before,) = pool_of(runner).pids
    started = time.monotonic()
    outcome = run(runner, "hangs")
    assert outcome.failure is ToolFailure.TIMED_OUT
    assert time.monotonic() - started < 10
    assert not is_running(before)
    assert run(runner, "raises", kind="nothing").text == "fine"
    assert pool_of(runner).pids != [before]


def test_what_a_tool_has_started_ends_with_it(runner, tmp_path):
    path = tmp_path / "pid"
    assert run(runner, "starts_child", path=str(path)).failure is ToolFailure.TIMED_OUT
    child, deadline = int(path.read_text()), time.monotonic() + 20
    while is_running(child) and not is_zombie(child):
        assert time.monotonic() < deadline, "the child outlived its tool"
        time.sleep(0.02)


def test_arguments_that_are_no_json_are_typed(runner):
    loop = {}
    loop["loop"] = loop
    for arguments in ({"x": np.int64(3)}, {"x": {1, 2}}, loop):
        outcome = run(runner, "prints", **arguments)
        assert outcome.failure is ToolFailure.BAD_ARGUMENT
        assert "no JSON" in outcome.text
    assert run(runner, "prints").failure is None


def test_bytes_that_are_gone_cost_the_call_only(runner):
    for error in (KeyError("gone"), OSError("disk"), BlobMissingError("gone")):
        shelf = make_shelf()

        def load(digest, error=error):
            raise error

        shelf.load, pids = load, pool_of(runner).pids
        outcome = run(runner, "invert", shelf=shelf)
        assert outcome.failure is ToolFailure.FAILED
        assert "is not there" in outcome.text
        assert pool_of(runner).pids == pids


def test_headers_go_to_the_worker(runner):
    shelf = make_header_shelf()
    outcome = run(runner, "headers", shelf=shelf)
    assert outcome.text == str([dict(record.header) for record in shelf.records])
    assert "echo_time_ms" in outcome.text


async def test_the_budget_of_an_episode_ends_the_wait_for_a_worker(runner):
    def start(name, budget_s=None, **arguments):
        call = ToolCall(name=name, arguments=arguments)
        return asyncio.create_task(runner.run_async(call, shelf=make_shelf(), key=KEY, budget_s=budget_s), name=name)

    assert (await start("prints")).failure is None  # the worker has started
    sleeping = start("sleeps", for_s=1.5)
    await asyncio.sleep(0.1)
    queued = start("prints", budget_s=0.2)  # waits for a thread
    direct = asyncio.to_thread(  # waits for a worker
        runner.run, ToolCall(name="prints"), shelf=make_shelf(), key=KEY, budget_s=0.2
    )
    outcomes = await asyncio.gather(queued, direct)
    assert [outcome.failure for outcome in outcomes] == [ToolFailure.TIMED_OUT] * 2
    assert not sleeping.done()
    assert (await sleeping).text == "slept"
    assert (await start("prints")).failure is None


def test_a_tool_that_cannot_be_made_costs_nobody_else(runner):
    outcome = run(runner, "only_here")
    assert outcome.failure is ToolFailure.FAILED
    assert "only_here cannot be made" in outcome.text
    assert run(runner, "prints").failure is None


def test_a_budget_of_nothing_left_times_out(runner):
    call = ToolCall(name="raises", arguments={"kind": "nothing"})
    outcome = runner.run(call, shelf=make_shelf(), key=KEY, budget_s=-1.0)
    assert outcome.failure is ToolFailure.TIMED_OUT


def test_a_dead_worker_is_typed_and_a_retry_says_which_call_it_is(runner):
    assert run(runner, "dies", always=True).failure is ToolFailure.FAILED
    outcome = run(runner, "dies")
    assert outcome.failure is None
    assert outcome.text == "0/1/0#2/3/1"


def test_tools_of_others_never_run_in_our_process(runner):
    outcome = run(runner, "prints")
    assert int(outcome.text) in pool_of(runner).pids
    assert not runs_inline(load_tool(f"{PACK}:Prints"))
    assert {name for name in BUILTIN_TOOLS if load_tool(name).cost is ToolCost.INLINE} == set(INLINE)
    assert all(runs_inline(load_tool(name)) for name in INLINE)


def test_a_tool_that_cannot_warm_up_is_not_installed(runner):
    outcome = run(runner, "cold")
    assert outcome.failure is ToolFailure.NOT_INSTALLED
    assert "a_package_that_is_not_there" in outcome.text


def test_images_go_to_the_worker_and_come_back_indexed(runner):
    shelf = make_shelf(view_size_px=200)
    outcome = run(runner, "invert", shelf=shelf)
    assert outcome.failure is None
    assert (outcome.images[0].width, outcome.images[0].height) == (120, 90)
    again = run(runner, "invert", shelf=shelf, image=2)
    assert shelf.records[3].ref == again.images[0]
    assert np.array_equal(shelf.context(KEY).image(2).pixels(), 255 - GREY)
    assert np.array_equal(shelf.context(KEY).image(3).pixels(), GREY)
    windowed = run(runner, "invert", shelf=shelf, image=1)
    assert windowed.failure is None


def test_numpy_numbers_pass(runner):
    outcome = run(runner, "numpy_numbers")
    assert (outcome.failure, outcome.text, len(outcome.images)) == (None, "ok", 1)


async def test_the_event_loop_goes_on_while_a_tool_hangs(runner):
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    ticking = asyncio.create_task(tick(), name="tick")
    outcome = await runner.run_async(ToolCall(name="hangs"), shelf=make_shelf(), key=KEY)
    ticking.cancel()
    assert outcome.failure is ToolFailure.TIMED_OUT
    assert ticks >= 5
    zoomed = await runner.run_async(
        ToolCall(name="zoom", arguments={"bbox": [0, 0, 500, 500]}), shelf=make_shelf(), key=KEY
    )
    assert zoomed.failure is None


async def test_close_ends_a_running_call_and_what_comes_after():
    runner = make_tool_runner([f"{PACK}:Hangs"], timeout_s=60, num_workers=1)
    runner._tools["hangs"].__class__.deadline_s = None
    try:
        call = asyncio.create_task(
            runner.run_async(ToolCall(name="hangs"), shelf=make_shelf(), key=KEY), name="hanging call"
        )
        await asyncio.sleep(1.0)
        queued = asyncio.create_task(
            runner.run_async(ToolCall(name="hangs"), shelf=make_shelf(), key=KEY), name="queued call"
        )
        await asyncio.sleep(0.05)
        pids = pool_of(runner).pids
        await asyncio.to_thread(runner.close)
        assert {(await task).failure for task in (call, queued)} == {ToolFailure.FAILED}
        assert not any(is_running(pid) for pid in pids)
        later = await runner.run_async(ToolCall(name="hangs"), shelf=make_shelf(), key=KEY)
        assert later.failure is ToolFailure.FAILED
    finally:
        runner._tools["hangs"].__class__.deadline_s = 0.3
        runner.close()


def test_workers_end_when_their_parent_is_killed_in_the_middle_of_a_call(tmp_path):
    script = tmp_path / "parent.py"  # without a __main__ guard: workers never import it again
    script.write_text(
        textwrap.dedent(
            f"""
            import sys, threading, time
            sys.path[:0] = {[os.path.dirname(__file__)]!r}
            from test_tools_views import make_shelf
            from medvista_ray.tools.base import CallKey
            from medvista_ray.tools.runner import make_tool_runner
            from medvista_ray.types.tool_calls import ToolCall
            import tools_fixture_pack
            tools_fixture_pack.Hangs.deadline_s = None
            runner = make_tool_runner(["tools_fixture_pack:Hangs"], timeout_s=500, num_workers=1)
            (pool,) = set(runner._executors.values())
            pool._free[0].wait_ready()
            print(pool.pids[0], flush=True)
            runner.run(ToolCall(name="hangs"), shelf=make_shelf(), key=CallKey())
            """
        )
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        time.sleep(0.3)
        assert is_running(worker)
        parent.kill()
    deadline = time.monotonic() + 20
    while is_running(worker) and not is_zombie(worker):
        assert time.monotonic() < deadline, "the worker outlived its pool"
        time.sleep(0.05)


def is_zombie(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_wrong_tool_names_fail_early():
    for spec, message in [
        ("zooom", "no tool 'zooom'"),
        ("no.such.module:Tool", "no module"),
        (f"{PACK}:Nothing", "no subclass"),
        (f"{PACK}:NoSchema", "no JSON schema"),
    ]:
        with pytest.raises(ConfigError, match=message):
            load_tool(spec)
    with pytest.raises(ConfigError, match="two tools are called 'zoom'"):
        load_tools(["zoom", "medvista_ray.tools.zoom:Zoom"])


def test_a_module_whose_own_import_is_missing_names_the_package(tmp_path, monkeypatch):
    (tmp_path / "needs_more_pack.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackageError, match="a_package_that_is_not_there"):
        load_tool("needs_more_pack:Tool")


def test_a_worker_that_never_starts_is_typed(monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))  # a worker that dies at once
    runner = make_tool_runner([f"{PACK}:Raises"], timeout_s=5, num_workers=1)
    try:
        outcome = run(runner, "raises", kind="nothing")
        assert outcome.failure is ToolFailure.FAILED
        assert "did not start" in outcome.text
    finally:
        runner.close()


def test_many_calls_share_few_workers(runner):
    async def call_all():
        shelves = [make_shelf() for _ in range(8)]
        call = ToolCall(name="prints")
        return await asyncio.gather(*(runner.run_async(call, shelf=shelf, key=KEY) for shelf in shelves))

    outcomes = asyncio.run(call_all())
    assert [outcome.failure for outcome in outcomes] == [None] * 8
    assert {int(outcome.text) for outcome in outcomes} <= set(pool_of(runner).pids)
