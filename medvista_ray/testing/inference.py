"""Scripted inference: a policy that answers from a script, and engines that hold nothing but a version."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

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


class ScriptedEngines:
    """A set of engines that take versions in order; refuses and dies on command."""

    def __init__(self, *, num_engines: int = 1) -> None:
        self._epoch = 0
        self._names = tuple(f"engine-{index}" for index in range(num_engines))
        self._staged: WeightUpdate | None = None
        self.policy_version: int | None = None  # what is loaded; None: closed
        self.versions: list[int] = []  # every swap, in order
        self.refused_versions: list[int] = []  # each entry is one refusal by all engines
        self.fatal_versions: list[int] = []  # each entry is one swap in which all engines die
        self.num_dead = 0
        self.is_closed = False

    def engine_set(self) -> EngineSet:
        """Return the engines that live."""
        return EngineSet(epoch=self._epoch, engines=self._names[self.num_dead :])

    def kill(self, num_engines: int = 1) -> None:
        """Let engines die until `recover`."""
        self.num_dead = min(self.num_dead + num_engines, len(self._names))
        self._epoch += 1

    async def stage(self, update: WeightUpdate) -> None:
        """Keep an update for the swap, or refuse it when the script says so."""
        if update.policy_version in self.refused_versions:
            self.refused_versions.remove(update.policy_version)
            raise WeightsRefusedError(f"version {update.policy_version}: scripted refusal")
        self._staged = update

    async def swap(self, policy_version: int) -> None:
        """Load what is staged; `EngineClosedError` when that is another version, `EngineDiedError` by the script."""
        if policy_version in self.fatal_versions:
            self.fatal_versions.remove(policy_version)
            self.kill(len(self._names))
            self._staged = None
            raise EngineDiedError(f"version {policy_version}: every scripted engine died")
        if self._staged is None or self._staged.policy_version != policy_version:
            raise EngineClosedError(f"version {policy_version} is not staged")
        await asyncio.sleep(0)
        self.policy_version = policy_version
        self.versions.append(policy_version)

    async def recover(self) -> int:
        """Bring the dead ones back; return how many."""
        recovered, self.num_dead = self.num_dead, 0
        self._epoch += recovered > 0
        return recovered

    async def close(self) -> None:
        """Stop every engine."""
        self.is_closed = True
