"""Train vision-language models to think with medical images: a gym, a rollout service, a trajectory stream."""

__version__ = "0.1.0"
