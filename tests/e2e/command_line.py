"""How tests start the `medvista` command: where it is, its environment, and a config for a run of seconds."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

MEDVISTA = Path(sys.executable).with_name("medvista")
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


def make_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a child: no coverage of ours, no colours, one thread."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200", **(extra or {})}
