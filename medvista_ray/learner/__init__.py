"""The built-in learner: losses, packing, one FSDP2 rank, supervised fine-tuning, checkpoints, weight files."""
