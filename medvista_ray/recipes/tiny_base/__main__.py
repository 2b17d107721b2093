"""Make the base checkpoint: build the folder, pre-train on training-split perception, measure on held-out sources.

python -m medvista_ray.recipes.tiny_base --out tiny_base --threads 2
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

logger = logging.getLogger("medvista_ray.recipes.tiny_base")


def main(
    out: Annotated[Path, typer.Option(help="Folder to write")] = Path("tiny_base"),
    seed: Annotated[int, typer.Option(help="Seed of weights and data")] = 0,
    threads: Annotated[int, typer.Option(help="Torch threads")] = 2,
    dense_steps: Annotated[int, typer.Option(help="Updates of the vision warm-up")] = 220,
    language_steps: Annotated[int, typer.Option(help="Updates on questions")] = 1350,
    held_out_items: Annotated[int, typer.Option(help="Items per kind of the final figures")] = 400,
) -> None:
    """Pre-train the tiny base; progress on stderr, figures into base_card.json."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    from medvista_ray.policy.tiny import build_tiny_policy
    from medvista_ray.recipes.tiny_base.vocabulary import PLAIN_TOKENS, make_corpus

    start = time.monotonic()
    build_tiny_policy(out, seed=seed, corpus=make_corpus(), plain_tokens=PLAIN_TOKENS)
    import torch

    torch.set_num_threads(threads)
    from medvista_ray.policy.loading import load_policy
    from medvista_ray.recipes.tiny_base.card import write_card
    from medvista_ray.recipes.tiny_base.perception import PerceptionSource
    from medvista_ray.recipes.tiny_base.training import Pretrainer, PretrainSettings, StepLog
    from medvista_ray.rendering.renderer import load_renderer

    settings = PretrainSettings(dense_steps=dense_steps, language_steps=language_steps, seed=seed)
    policy = load_policy(out, device="cpu")
    trainer = Pretrainer(policy, load_renderer(out), settings)
    log = StepLog()
    trainer.run(PerceptionSource("demo", "train"), on_step=log)
    policy.model.save_pretrained(out)
    held_out = PerceptionSource("demo", "held_out")
    figures = {kind: trainer.accuracy(held_out, kind, count=held_out_items) for kind in held_out.kinds}
    for kind, figure in figures.items():
        logger.info("held out %s: %.3f of %d", kind, figure, held_out_items)
    card = {
        "num_parameters": sum(parameter.numel() for parameter in policy.model.parameters()),
        "sha256": hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest(),
        "seed": seed,
        "steps": {"dense": dense_steps, "language": language_steps},
        "batch_size": settings.batch_size,
        "threads": threads,
        "loss_first_and_last": log.ends(),
        "wall_s": round(time.monotonic() - start, 1),
        "held_out_accuracy": figures,
        "held_out_items_per_kind": held_out_items,
    }
    (out / "base_card.json").write_text(json.dumps(card, indent=1) + "\n")
    (out / "README.md").write_text(write_card(card))


if __name__ == "__main__":
    typer.run(main)
