"""Where Ray is: an address from the config or RAY_ADDRESS, else a Ray started for this run on this machine.

A Ray of our own is for laptops and the demo: one machine, as many logical CPUs as the plan asks for, no dashboard, a
small object store. It wants a token, which only this process and its children know (its ports are open on every
interface), unless RAY_AUTH_MODE says otherwise. It ends with the connection.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from medvista_ray.config.schema import ClusterConfig
from medvista_ray.errors import ConfigError, PlacementError

_log = logging.getLogger(__name__)
_OBJECT_STORE_BYTES = 256 * 2**20  # groups and images are small and leave the store at once
_REACH_S = 5.0

# Every process computes with few threads on purpose: OpenMP pools that share cores starve each other.
WORKER_ENV = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RayConnection:
    """A connection to Ray, and what to do with it at the end."""

    is_ours: bool  # this connection started that Ray
    is_borrowed: bool  # this process was connected before
    node_id: str  # where this process runs

    @property
    def worker_env(self) -> Mapping[str, str]:
        """Return the variables that actors must be given; a Ray of our own has handed them down already."""
        return {} if self.is_ours else WORKER_ENV

    def close(self) -> None:
        """Leave Ray; a Ray of our own ends, any other goes on. May be called again."""
        if not self.is_borrowed and ray.is_initialized():
            ray.shutdown()


def connect(config: ClusterConfig, *, num_cpus: float, num_gpus: float) -> RayConnection:
    """Connect to the configured Ray, or start one with that many logical CPUs and GPUs; takes seconds and blocks.

    Raises:
        ConfigError: there is no Ray at the configured address.
        PlacementError: a Ray of our own could not be started.
    """
    address = config.address or os.environ.get("RAY_ADDRESS", "")
    is_borrowed = ray.is_initialized()
    if not is_borrowed:
        context = _join(address) if address else _start(num_cpus=num_cpus, num_gpus=num_gpus)
        session = context.address_info["session_dir"]
        _log.info("Ray %s; its processes log into %s/logs", address or "of our own", session)
    return RayConnection(
        is_ours=not address and not is_borrowed,
        is_borrowed=is_borrowed,
        node_id=ray.get_runtime_context().get_node_id(),
    )


def _join(address: str) -> Any:
    if address.startswith("ray://"):
        raise ConfigError(
            f"cluster.address={address!r}: a run needs a direct connection; give host:port and start it on a node of "
            "the cluster, or hand it in with `ray job submit`"
        )
    _check_reachable(address)
    try:
        return ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"cluster.address={address!r} (or RAY_ADDRESS): cannot connect to Ray: {error}") from error


def _check_reachable(address: str) -> None:
    """Try the port first: Ray itself would try for minutes, without a word."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return  # "auto", or nonsense that Ray names at once
    try:
        socket.create_connection((host, int(port)), timeout=_REACH_S).close()
    except OSError as error:
        raise ConfigError(
            f"cluster.address={address!r} (or RAY_ADDRESS): nothing answers there ({error}); start a cluster with "
            "`ray start --head`, or leave it empty for a Ray on this machine"
        ) from error


def _start(*, num_cpus: float, num_gpus: float) -> Any:
    # Ray starts with a token by itself when RAY_AUTH_MODE is not set; given one, it leaves none in the home folder.
    # One for the whole process: Ray reads it once.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        with _environment(
            {
                **WORKER_ENV,
                "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),  # a user's env, for example
                "RAY_USAGE_STATS_ENABLED": "0",
            }
        ):
            return ray.init(
                address="local",
                num_cpus=math.ceil(num_cpus),
                num_gpus=math.ceil(num_gpus),
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,  # it warns that it wants a token
            )
    except RuntimeError as error:
        raise PlacementError(f"Ray could not be started on this machine: {error}") from error


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the processes that are started meanwhile."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
