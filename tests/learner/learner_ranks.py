"""What one spawned gloo rank runs; its own module, so that a fresh interpreter can import it."""

from __future__ import annotations

import json
import traceback
from pathlib import Path

import torch
from safetensors.torch import save_file

from medvista_ray.config.schema import LearnerConfig, PolicyConfig
from medvista_ray.learner.process_group import RankAddress
from medvista_ray.learner.rank import LearnerRank
from medvista_ray.types.samples import BatchShard
from medvista_ray.types.sampling import SamplingSpec

LEARNER = {"lr": 1e-4, "warmup_steps": 0, "microbatch_tokens": 120}


def run_rank(
    rank: int,
    world_size: int,
    policy_folder: str,
    batches: list[list[BatchShard]],
    images: list[dict[str, bytes]],
    out: str,
    changes: dict[str, object],
) -> None:
    """Train the batches, then write weights, metrics and a checkpoint into `out`; an error goes into a file."""
    folder = Path(out)
    torch.set_num_threads(1)
    try:
        address = RankAddress(
            rank=rank, world_size=world_size, init_method=f"file://{folder / 'meet'}" if world_size > 1 else ""
        )
        learner = LearnerRank(
            LearnerConfig(**(LEARNER | changes)),  # type: ignore[arg-type]
            policy_config=PolicyConfig(path=policy_folder, device="cpu"),
            sampling=SamplingSpec(temperature=0.9, banned_token_ids=(3, 4, 5, 6)),
            address=address,
        )
        metrics = []
        for shards in batches:
            learner.begin_batch(shards[rank], images[rank])
            metrics.append(dict(learner.finish_batch().metrics))
        checkpoint = folder / "checkpoint"
        checkpoint.mkdir(exist_ok=True)
        learner.save_checkpoint(checkpoint)
        before = learner.full_state_dict()
        learner.begin_batch(batches[0][rank], images[rank])
        learner.finish_batch()
        moved = learner.full_state_dict()
        learner.load_checkpoint(checkpoint)
        restored = learner.full_state_dict()
        learner.begin_batch(batches[0][rank], images[rank])
        learner.finish_batch()
        again = learner.full_state_dict()
        if rank == 0:
            for name, state in (("before", before), ("moved", moved), ("restored", restored), ("again", again)):
                save_file(state, folder / f"{name}.safetensors")
        (folder / f"metrics-{rank}.json").write_text(json.dumps(metrics))
        learner.close()
    except BaseException:
        (folder / f"error-{rank}.txt").write_text(traceback.format_exc())
        raise
