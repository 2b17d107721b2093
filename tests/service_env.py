"""An env whose every turn calls the service tool `counts`. Shards import this module by name."""

from __future__ import annotations

from typing import Any

from small_runs import MemberRewardEnv

from medvista_ray.envs.tool_env import Plan
from medvista_ray.rewards.rubric import Score
from medvista_ray.types.tool_calls import ToolCall

SPEC = "tools_service_pack:Counts"


class ServiceEnv(MemberRewardEnv):
    """Tells in its breakdown which process answered, and how many calls ran together at most."""

    _pid = _batch = 0

    def plan(self, episode: Any, parsed: Any) -> Plan:
        return Plan(call=ToolCall(name="counts", arguments={"sleep_s": 0.02}))

    def learn(self, episode: Any, outcome: Any) -> None:
        assert outcome.failure is None, outcome.text
        pid, _, batch, _ = outcome.text.split("/")
        self._pid, self._batch = int(pid), max(self._batch, int(batch))

    def _score(self, episode: Any, *, answer: Any) -> Score:
        score = super()._score(episode, answer=answer)
        facts = {"pid": float(self._pid), "batch": float(self._batch)}
        return Score(reward=score.reward, breakdown={**score.breakdown, **facts})
