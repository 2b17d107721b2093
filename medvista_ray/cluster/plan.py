"""What the actors of a run need, and whether the cluster has it. Knows numbers of CPUs and GPUs, starts nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import ray

from medvista_ray.assembly import find_services
from medvista_ray.config.schema import RunConfig
from medvista_ray.errors import PlacementError

_POLL_S = 0.5
_SLACK = 1e-6  # Ray counts in 1/10000


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorNeed:
    """Actors of one kind; each of them must find its resources on one node."""

    name: str
    count: int
    resources: Mapping[str, float]  # of one: CPU, GPU
    key: str  # the settings to lower when there is no room


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRoom:
    """What a cluster has."""

    nodes: tuple[Mapping[str, float], ...]  # all that each living node has
    available: Mapping[str, float]  # of it, what nobody holds


def make_plan(config: RunConfig) -> tuple[ActorNeed, ...]:
    """List what a run starts; buffer and blob store run beside the driver and ask for nothing."""
    cluster = config.cluster
    num_services = len(find_services(config))
    services = ActorNeed(
        name="ToolServiceActor",
        count=num_services,
        resources={"CPU": cluster.service_cpus, "GPU": 0.0},
        key="the number of services in env.tools, or cluster.service_cpus",
    )
    return (
        ActorNeed(
            name="EngineActor",
            count=config.inference.num_engines,
            resources={"CPU": cluster.engine_cpus, "GPU": cluster.engine_gpus},
            key="inference.num_engines, cluster.engine_cpus or cluster.engine_gpus",
        ),
        ActorNeed(
            name="LearnerActor",
            count=config.learner.world_size,
            resources={"CPU": cluster.learner_cpus, "GPU": cluster.learner_gpus},
            key="learner.world_size, cluster.learner_cpus or cluster.learner_gpus",
        ),
        ActorNeed(
            name="EnvShardActor",
            count=config.rollout.num_shards,
            resources={"CPU": cluster.shard_cpus, "GPU": 0.0},
            key="rollout.num_shards or cluster.shard_cpus",
        ),
        *((services,) if num_services else ()),
    )


def total_of(plan: Sequence[ActorNeed], resource: str) -> float:
    """Sum one resource over all actors."""
    return sum(need.count * need.resources[resource] for need in plan)


def what_is_missing(plan: Sequence[ActorNeed], room: ClusterRoom) -> str | None:
    """Return what the cluster lacks, in words; None when the plan fits."""
    for resource in ("CPU", "GPU"):
        wanted, there = total_of(plan, resource), room.available.get(resource, 0.0)
        if wanted > there + _SLACK:
            users = "; ".join(
                f"{need.count} x {need.name} of {need.resources[resource]:g} (lower {need.key})"
                for need in plan
                if need.resources[resource] > 0
            )
            return f"{resource}: {wanted:g} needed, {there:g} free of {_sum(room.nodes, resource):g}: {users}"
    return _unplaceable(plan, room.nodes)


def _sum(nodes: Sequence[Mapping[str, float]], resource: str) -> float:
    return sum(node.get(resource, 0.0) for node in nodes)


def _unplaceable(plan: Sequence[ActorNeed], nodes: Sequence[Mapping[str, float]]) -> str | None:
    """Put the largest actors first, each on the first node with room; return which one finds none."""
    left = [dict(node) for node in nodes]
    needs = sorted(plan, key=lambda need: (need.resources["GPU"], need.resources["CPU"]), reverse=True)
    for need in needs:
        for number in range(need.count):
            node = next((node for node in left if _fits(need.resources, node)), None)
            if node is None:
                wish = ", ".join(f"{amount:g} {name}" for name, amount in need.resources.items() if amount)
                return f"no node has {wish} together for {need.name} {number + 1} of {need.count} (lower {need.key})"
            for name, amount in need.resources.items():
                node[name] = node.get(name, 0.0) - amount
    return None


def _fits(wanted: Mapping[str, float], node: Mapping[str, float]) -> bool:
    return all(amount <= node.get(name, 0.0) + _SLACK for name, amount in wanted.items())


def look_at_cluster() -> ClusterRoom:
    """Ask Ray what its nodes have and what is free."""
    nodes = tuple(node["Resources"] for node in ray.nodes() if node["Alive"])
    return ClusterRoom(nodes=nodes, available=ray.available_resources())


async def check_placement(
    plan: Sequence[ActorNeed], *, timeout_s: float, look: Callable[[], ClusterRoom] = look_at_cluster
) -> None:
    """Wait until the cluster has room for the plan; nodes may still be joining.

    Raises:
        PlacementError: says which resource is missing after `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while (missing := what_is_missing(plan, look())) is not None:
        if time.monotonic() >= deadline:
            raise PlacementError(f"the cluster has no room for this run after {timeout_s:g} s; missing {missing}")
        await asyncio.sleep(_POLL_S)
