"""The `medvista` command as a user runs it, and a small policy with random weights."""

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from command_line import MEDVISTA, SMALL_RUN, make_environment

RunMedvista = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def medvista(tmp_path_factory: pytest.TempPathFactory) -> RunMedvista:
    """Return a function that runs `medvista` in an empty folder and waits for it."""
    empty = tmp_path_factory.mktemp("cwd")

    def run(
        arguments: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 240,
        cwd: Path = empty,
    ) -> subprocess.CompletedProcess[str]:
        command = [str(MEDVISTA), *map(str, arguments)]
        return subprocess.run(
            command, cwd=cwd, env=make_environment(env), capture_output=True, text=True, timeout=timeout_s, check=False
        )

    return run


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a policy folder with random weights and the demo's vocabulary."""
    from medvista_ray.policy.tiny import build_tiny_policy
    from medvista_ray.recipes.tiny_base.vocabulary import PLAIN_TOKENS, make_corpus

    folder = tmp_path_factory.mktemp("policy") / "tiny"
    return build_tiny_policy(folder, corpus=make_corpus(), plain_tokens=PLAIN_TOKENS)


@pytest.fixture
def small_config(tmp_path: Path, tiny_policy: Path) -> Path:
    """Return a config file for a local run of seconds."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL_RUN.format(policy=tiny_policy))
    return path
