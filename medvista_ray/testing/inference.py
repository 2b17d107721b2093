"""Scripted inference: a policy that answers from a script, and engines that hold nothing but a version."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from medvista_ray.errors import EngineClosedError, EngineDiedError, WeightsRefusedError
from medvista_ray.types.protocols import EngineSet
from medvista_ray.types.sampling import GenerateRequest, GenerateResult, WeightUpdate
from medvista_ray.types.trajectories import VersionSpan

Script = Sequence[Sequence[int]] | Callable[[GenerateRequest], Sequence[int]]


class ScriptedPolicyClient:
    """Answers turn k with the k-th line of the script, or with what the script says to the request."""

    def __init__(self, script: Script, *, policy_version: int = 0, logprob: float = -0.5, delay_s: float = 0.0) -> None:
        self._script = script
        self._logprob = logprob
        self._delay_s = delay_s
        self.policy_version = policy_version
        self.requests: list[GenerateRequest] = []
        self.is_dead = False

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        """Return the scripted tokens, cut at the request's limit; `EngineDiedError` once it is dead."""
        if self.is_dead:
            raise EngineDiedError("the scripted engine was killed")
        self.requests.append(request)
        await asyncio.sleep(self._delay_s)
        tokens = list(self._script(request) if callable(self._script) else self._script[request.turn_index])
        kept = np.array(tokens[: request.max_new_tokens], np.int32)
        stops = request.sampling.stop_token_ids
        return GenerateResult(
            token_ids=kept,
            logprobs=np.full(len(kept), self._logprob, np.float32),
            version_spans=(VersionSpan(policy_version=self.policy_version, start=0, end=len(kept)),),
            prompt_length=len(request.token_ids),
            stopped=bool(len(kept)) and int(kept[-1]) in stops,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedEngine:
    """An engine that is nothing but its name."""

    engine_id: str


class ScriptedEngines:
    """A set of engines that take versions in order; refuses and dies on command, and then as `LocalEngines` does."""

    def __init__(self, *, num_engines: int = 1) -> None:
        self._epoch = 0
        self._num_engines = num_engines
        self._num_made = 0
        self._engines: list[ScriptedEngine] = []
        self._make_missing()
        self._num_replaced = 0  # since the last `recover`
        self._staged: WeightUpdate | None = None
        self.policy_version: int | None = None  # what is loaded; None: closed
        self.versions: list[int] = []  # every swap, in order
        self.refused_versions: list[int] = []  # each entry is one refusal by all engines
        self.fatal_versions: list[int] = []  # each entry is one swap, or start from it, in which all engines die
        self.quarantined: list[str] = []  # engine_id, in order
        self.is_closed = False

    @property
    def num_dead(self) -> int:
        """Count the engines that `recover` will make."""
        return self._num_engines - len(self._engines)

    def engine_set(self) -> EngineSet:
        """Return the engines that live."""
        return EngineSet(epoch=self._epoch, engines=tuple(self._engines))

    def kill(self, num_engines: int = 1) -> None:
        """Let engines die until `recover`."""
        del self._engines[:num_engines]
        self._epoch += 1

    async def stage(self, update: WeightUpdate) -> None:
        """Keep an update for the swap, or refuse it when the script says so."""
        if update.policy_version in self.refused_versions:
            self.refused_versions.remove(update.policy_version)
            raise WeightsRefusedError(f"version {update.policy_version}: scripted refusal")
        if not self._engines:
            self._num_replaced += self._make_missing()
        self._staged = update

    async def swap(self, policy_version: int) -> None:
        """Load what is staged, unless the script lets every engine die; `EngineClosedError` for another version."""
        if self._staged is None or self._staged.policy_version != policy_version:
            raise EngineClosedError(f"version {policy_version} is not staged")
        await asyncio.sleep(0)
        self.versions.append(policy_version)
        self.policy_version = policy_version
        if self._dies_at(policy_version):
            self.kill(self._num_engines)

    async def quarantine(self, engine_id: str, why: str) -> None:
        """Take one engine out of the set until `recover`."""
        self.quarantined.append(engine_id)
        self._engines = [engine for engine in self._engines if engine.engine_id != engine_id]
        self._epoch += 1

    async def recover(self) -> int:
        """Make engines for those that are gone unless the script says they die; return how many since the last call."""
        if self.num_dead and not self._dies_at(self.policy_version):
            self._num_replaced += self._make_missing()
        num_replaced, self._num_replaced = self._num_replaced, 0
        return num_replaced

    async def close(self) -> None:
        """Stop every engine."""
        self.is_closed = True

    def _dies_at(self, policy_version: int | None) -> bool:
        if policy_version not in self.fatal_versions:
            return False
        self.fatal_versions.remove(policy_version)
        return True

    def _make_missing(self) -> int:
        num_new = self.num_dead
        for _ in range(num_new):
            self._engines.append(ScriptedEngine(engine_id=f"engine-{self._num_made}"))
            self._num_made += 1
        self._epoch += num_new > 0
        return num_new
