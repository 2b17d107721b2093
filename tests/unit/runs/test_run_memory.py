"""PSS is summed over the tree of processes, each once; processes that end meanwhile do no harm."""

import os
import subprocess
import sys

import pytest

from medvista_ray.runs.memory import MemorySampler, measure_pss

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs /proc")

MIB = 2**20
CHILD = """
import subprocess, sys
grandchild = subprocess.Popen([sys.executable, "-c", "b = b'x' * (64 << 20); print(len(b), flush=True); input()"],
                              stdin=sys.stdin, stdout=subprocess.PIPE)
grandchild.stdout.readline()
print("ready", flush=True)
grandchild.wait()
"""


def test_descendants_count_and_the_peak_stays() -> None:
    before = measure_pss([os.getpid()])
    assert before is not None
    with MemorySampler(interval_s=30) as sampler:
        child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdin is not None
        assert child.stdout is not None
        with child:
            child.stdout.readline()
            during = sampler.sample()
            child.stdin.write(b"\n")
    assert during is not None
    assert during - before > 64 * MIB
    assert sampler.peak_pss_bytes is not None
    assert sampler.peak_pss_bytes >= during


def test_a_root_that_is_also_a_descendant_counts_once() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "b = b'x' * (32 << 20); print(len(b), flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        child.stdout.readline()
        once, twice = measure_pss([os.getpid()]), measure_pss([os.getpid(), child.pid, os.getpid()])
        child.stdin.write(b"\n")
    assert once is not None
    assert twice is not None
    assert abs(twice - once) < 16 * MIB


def test_a_pid_that_is_gone_adds_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert measure_pss([child.pid]) == 0


def test_the_thread_samples_by_itself_and_stops_twice() -> None:
    sampler = MemorySampler(interval_s=0.01)
    sampler.start()
    sampler.stop()
    sampler.stop()
    assert sampler.peak_pss_bytes is not None
    assert sampler.peak_pss_bytes > MIB
