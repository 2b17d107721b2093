"""Gymnasium environments. Importing this registers them by name; their classes are loaded when they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gymnasium.envs.registration import register

_CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "MedicalVQAEnv": "medvista_ray.envs.medical_vqa",
        "InteractiveSegmentationEnv": "medvista_ray.envs.interactive_segmentation",
        "GroundingEnv": "medvista_ray.envs.grounding",
    }
)

for _name, _module in _CLASSES.items():
    register(id=f"medvista/{_name.removesuffix('Env')}-v0", entry_point=f"{_module}:{_name}")


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return getattr(importlib.import_module(_CLASSES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
