"""Put summary.json together from stage results and held-out outcomes. Knows names of stages; runs nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from medvista_ray.config.schema import RunConfig
from medvista_ray.evaluation.failures import count_failures
from medvista_ray.evaluation.outcomes import EpisodeOutcome
from medvista_ray.evaluation.statistics import compute_row
from medvista_ray.policy.loading import resolve_policy_path
from medvista_ray.runs.summary import (
    ActorInfo,
    GroupCounts,
    Staleness,
    Summary,
    WallSeconds,
    collect_versions,
)

_RL_STAGES = ("rl_tools", "rl_no_tools", "rl")
_SFT_STAGES = ("base", "sft_tools", "sft")


def make_summary(
    config: RunConfig, *, outcomes: Mapping[str, Sequence[EpisodeOutcome]], results: Mapping[str, Mapping[str, Any]]
) -> Summary:
    """Sum a run up; counters are those of the first reinforcement-learning stage, parity the worst of all."""
    rows = {
        row: compute_row(list(found), draws=config.evaluation.bootstrap_draws, seed=config.seed)
        for row, found in outcomes.items()
    }
    trained = [results[name] for name in _RL_STAGES if name in results]
    first: Mapping[str, Any] = trained[0]["summary"] if trained else {}
    differences = [result["summary"].get("max_abs_logprob_diff") for result in trained]
    peaks = [result.get("peak_pss_bytes") for result in results.values()]
    return Summary(
        run_name=config.run_name,
        mode=config.mode,
        seed=config.seed,
        num_parameters=count_parameters(config),
        accuracy={row: dict(result.accuracy) for row, result in rows.items()},
        valid_answers={row: result.valid_answers for row, result in rows.items()},
        valid_tool_calls={row: result.valid_tool_calls for row, result in rows.items()},
        calls_per_episode={row: dict(result.calls_per_episode) for row, result in rows.items()},
        failure_classes={row: count_failures(found) for row, found in outcomes.items()},
        wall_s=_wall(results),
        rollout_tokens_per_s=float(first.get("rollout_tokens_per_s", 0.0)),
        max_abs_logprob_diff=max((value for value in differences if value is not None), default=None),
        staleness=Staleness(**first.get("staleness", {})),
        groups=GroupCounts(**first.get("groups", {})),
        actors=[
            ActorInfo(actor_class=actor["name"], pid=actor["pid"])
            for actor in (trained[0].get("actors", []) if trained else [])
        ],
        peak_pss_bytes=max((value for value in peaks if value is not None), default=None),
        versions=collect_versions(),
        recoveries=dict(sum((Counter(result["summary"].get("recoveries", {})) for result in trained), Counter())),
        settled_groups={name: _settled(results[name]["summary"]["groups"]) for name in _RL_STAGES if name in results},
    )


def count_parameters(config: RunConfig) -> int:
    """Count the weights of the initial policy from the headers of its safetensors files, without torch."""
    total = 0
    for path in sorted(resolve_policy_path(config.policy.path).glob("*.safetensors")):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        for name, tensor in header.items():
            if name != "__metadata__":
                count = 1
                for side in tensor["shape"]:
                    count *= side
                total += count
    return total


def _settled(groups: Mapping[str, int]) -> int:
    return sum(groups[state] for state in ("consumed", "filtered", "failed"))


def _wall(results: Mapping[str, Mapping[str, Any]]) -> WallSeconds:
    def seconds(names: Sequence[str]) -> float:
        return sum(float(results[name]["wall_s"]) for name in names if name in results)

    evaluations = [name for name in results if name.startswith("eval")]
    return WallSeconds(
        data=seconds(("data",)),
        sft=seconds(_SFT_STAGES),
        rl=seconds(_RL_STAGES),
        eval=seconds(evaluations),
        total=seconds(list(results)),
    )
