"""The `medvista` command as a user runs it, and a small policy with random weights."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

MEDVISTA = Path(sys.executable).with_name("medvista")
HERE = Path(__file__).parent
# One run of seconds: pocket images (inside pydicom), two turns, two groups a train step.
SMALL_RUN = """
run_name: small
mode: local
policy: {{path: {policy}, device: cpu}}
data: {{source: pocket, families: [zoom], weights: [1.0], num_tasks: 40, num_held_out: 4}}
env: {{tools: [zoom], tool_prompt: names, list_choices: false, view_size_px: 84, max_turns: 2, max_action_tokens: 12,
      max_context_tokens: 256}}
rollout: {{group_size: 4, num_shards: 2, slots_per_shard: 2}}
buffer: {{groups_per_step: 2, max_staleness: 1, max_concurrent: 4}}
learner: {{lr: 1.0e-4}}
evaluation: {{samples_per_item: 1, num_threads: 1}}
train: {{checkpoint_every: 2}}
"""

RunMedvista = Callable[..., subprocess.CompletedProcess[str]]


def make_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a child: no coverage of ours, no colours, one thread."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200", **(extra or {})}


@pytest.fixture
def medvista(tmp_path: Path) -> RunMedvista:
    """Return a function that runs `medvista` in an empty folder and waits for it."""
    cwd = tmp_path / "cwd"
    cwd.mkdir()

    def run(
        arguments: Sequence[str | Path], *, env: Mapping[str, str] | None = None, timeout_s: float = 240
    ) -> subprocess.CompletedProcess[str]:
        command = [str(MEDVISTA), *map(str, arguments)]
        return subprocess.run(
            command, cwd=cwd, env=make_environment(env), capture_output=True, text=True, timeout=timeout_s, check=False
        )

    return run


@pytest.fixture(scope="session")
def small_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a policy folder with random weights and the demo's vocabulary."""
    from medvista_ray.policy.tiny import build_tiny_policy
    from medvista_ray.recipes.tiny_base.vocabulary import PLAIN_TOKENS, make_corpus

    folder = tmp_path_factory.mktemp("policy") / "tiny"
    return build_tiny_policy(folder, corpus=make_corpus(), plain_tokens=PLAIN_TOKENS)


@pytest.fixture
def small_config(tmp_path: Path, small_policy: Path) -> Path:
    """Return a config file for a local run of seconds."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL_RUN.format(policy=small_policy))
    return path
