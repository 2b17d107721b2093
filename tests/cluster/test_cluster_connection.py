"""Where Ray is: an address that is given is joined and left running; one that is wrong is named at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("ray")

_JOIN = """
import json, sys
import ray
from medvista_ray.cluster.connection import connect
from medvista_ray.config.schema import ClusterConfig
from medvista_ray.errors import ConfigError
connection = connect(ClusterConfig(), num_cpus=64, num_gpus=0)  # the address comes from RAY_ADDRESS
print(json.dumps([connection.is_ours, connection.node_id, ray.cluster_resources()["CPU"]]))
connection.close()
connection.close()
print(ray.is_initialized())
"""


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        check=False,
    )


def test_a_given_ray_is_joined_and_left_running(ray_here: None) -> None:
    import ray

    from medvista_ray.cluster.connection import connect
    from medvista_ray.config.schema import ClusterConfig

    done = run_python(_JOIN, RAY_ADDRESS=ray.get_runtime_context().gcs_address)
    assert done.returncode == 0, done.stderr
    joined, is_initialized = done.stdout.strip().splitlines()
    node_id = ray.get_runtime_context().get_node_id()
    assert json.loads(joined) == [False, node_id, ray.cluster_resources()["CPU"]]
    assert is_initialized == "False"

    borrowed = connect(ClusterConfig(), num_cpus=64, num_gpus=0)
    assert (borrowed.is_borrowed, borrowed.is_ours) == (True, False)
    borrowed.close()
    assert ray.is_initialized()


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:9", "nothing answers there"),
        ("nonsense", "cannot connect to Ray"),
        ("ray://127.0.0.1:10001", "needs a direct connection"),
    ],
)
def test_a_wrong_address_is_named_at_once(address: str, says: str) -> None:
    code = f"""
from medvista_ray.cluster.connection import connect
from medvista_ray.config.schema import ClusterConfig
from medvista_ray.errors import ConfigError
try:
    connect(ClusterConfig(address={address!r}), num_cpus=1, num_gpus=0)
except ConfigError as error:
    print(error)
"""
    said = run_python(code).stdout
    assert f"cluster.address={address!r}" in said
    assert says in said
