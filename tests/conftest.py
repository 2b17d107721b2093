"""What every tier shares: where the checkout is, and two things that take seconds to make, a tiny policy and a Ray."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_BUILD = """
import sys
from pathlib import Path
from medvista_ray.policy.tiny import build_tiny_policy
build_tiny_policy(Path(sys.argv[1]), seed=3, corpus=("Which letter is in the image? Answer with a letter.",))
"""


@pytest.fixture(scope="session")
def checkout() -> Path:
    """Return the root of the repository."""
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def small_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a random policy folder; built elsewhere, so that a test process without torch stays without."""
    folder = tmp_path_factory.mktemp("small_policy")
    subprocess.run([sys.executable, "-c", _BUILD, str(folder)], check=True, timeout=120)
    return folder


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """Start one Ray for all tests of the session; the runs of single tests borrow it."""
    from medvista_ray.cluster.connection import connect
    from medvista_ray.config.schema import ClusterConfig

    connection = connect(ClusterConfig(), num_cpus=8, num_gpus=0)
    yield
    connection.close()
