"""Which resource is missing: pure numbers, no Ray is started."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("ray")

from small_runs import make_small_config

from medvista_ray.cluster.plan import ClusterRoom, check_placement, make_plan, total_of, what_is_missing
from medvista_ray.errors import PlacementError

CONFIG = make_small_config(Path("policy"), world_size=2, num_engines=2, cluster={"engine_gpus": 1.0})


def room(*nodes: dict[str, float]) -> ClusterRoom:
    free = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    return ClusterRoom(nodes=nodes, available=free)


def test_a_plan_counts_every_actor() -> None:
    plan = make_plan(CONFIG)
    assert total_of(plan, "CPU") == 2 * 1.0 + 2 * 1.0 + 2 * 0.25
    assert total_of(plan, "GPU") == 2.0


def test_a_plan_that_fits_misses_nothing() -> None:
    assert what_is_missing(make_plan(CONFIG), room({"CPU": 2.5, "GPU": 1.0}, {"CPU": 2.0, "GPU": 1.0})) is None


def test_the_missing_resource_is_named_with_numbers_and_the_settings_to_lower() -> None:
    missing = what_is_missing(make_plan(CONFIG), room({"CPU": 8.0, "GPU": 1.0}))
    assert missing is not None
    assert missing.startswith("GPU: 2 needed, 1 free of 1")
    assert "2 x EngineActor of 1 (lower inference.num_engines" in missing
    missing = what_is_missing(make_plan(CONFIG), room({"CPU": 4.0, "GPU": 2.0}))
    assert missing is not None
    assert missing.startswith("CPU: 4.5 needed, 4 free of 4")


def test_what_others_hold_does_not_count() -> None:
    held = ClusterRoom(nodes=({"CPU": 8.0, "GPU": 2.0},), available={"CPU": 1.0, "GPU": 2.0})
    missing = what_is_missing(make_plan(CONFIG), held)
    assert missing is not None
    assert missing.startswith("CPU: 4.5 needed, 1 free of 8")


def test_an_actor_needs_its_resources_on_one_node() -> None:
    missing = what_is_missing(make_plan(CONFIG), room({"CPU": 8.0}, {"CPU": 0.5, "GPU": 2.0}))
    assert missing is not None
    assert "no node has 1 CPU, 1 GPU together for EngineActor 1 of 2" in missing


async def test_nodes_may_still_be_joining() -> None:
    looks = [room({"CPU": 1.0}), room({"CPU": 8.0, "GPU": 2.0})]
    await check_placement(make_plan(CONFIG), timeout_s=10.0, look=lambda: looks.pop(0))
    assert not looks


async def test_a_cluster_without_room_ends_the_start_in_time() -> None:
    with pytest.raises(PlacementError, match=r"after 0\.2 s; missing GPU: 2 needed, 0 free"):
        await check_placement(make_plan(CONFIG), timeout_s=0.2, look=lambda: room({"CPU": 8.0}))
