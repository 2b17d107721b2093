"""Turn what Ray raises into our own errors: the one place where a dead process becomes `ShardDiedError` and its kind.

An error that a method raised arrives as its own type, with the remote traceback as its cause; everything else that Ray
raises means that the process, its node or its answer is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from concurrent.futures import Future
from typing import Any

from ray.exceptions import ActorDiedError, RayError, RayTaskError, TaskCancelledError

from medvista_ray.errors import MedVistaError, RunFailedError


async def answer_of(call: Awaitable[Any], *, who: str, died: type[MedVistaError]) -> Any:
    """Await a call to an actor.

    Args:
        call: the reference that the call returned.
        who: the process, for the message.
        died: raised when the process is gone.
    """
    try:
        return await call
    except TaskCancelledError:  # the method was cancelled over there; before its base class
        raise asyncio.CancelledError(f"{who} was told to stop") from None
    except RayTaskError as error:
        raise _cause_of(error, who) from error
    except RayError as error:
        raise died(f"{who}: {describe(error)}") from error


def life_of(actor: Any) -> Future[None]:
    """Return what ends when an actor's process does; call it when `start` has answered, calls may overtake another."""
    life: Future[None] = actor.live.remote().future()
    return life


def describe(error: RayError) -> str:
    """Return one line: the reason of a death where Ray gives one, else the head of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ActorDiedError):
        for line in lines:
            if line.startswith("The actor is dead because"):
                return line.partition(" Some common causes")[0][:300]
    return (lines or [type(error).__name__])[0][:300]


def _cause_of(error: RayTaskError, who: str) -> BaseException:
    cause = error.cause
    if isinstance(cause, RayError) or not isinstance(cause, BaseException):
        return RunFailedError(f"{who}: {cause}")  # an error that cannot be pickled keeps its text only
    return cause
