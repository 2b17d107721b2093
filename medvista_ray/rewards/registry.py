"""Names of rubrics and where they are. A visible table; third parties write `pkg.module:Class`.

What ends in `_published` is a formula as it was published that pays for needless actions: it is there to compare with.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from types import MappingProxyType

from medvista_ray.errors import ConfigError
from medvista_ray.rewards.rubric import Rubric

BUILTIN_RUBRICS: Mapping[str, str] = MappingProxyType(
    {
        "vista": "medvista_ray.rewards.vista:VistaRubric",
        "segmentation": "medvista_ray.rewards.segmentation:SegmentationRubric",
        "grounding": "medvista_ray.rewards.grounding:GroundingRubric",
        "ophiuchus_published": "medvista_ray.rewards.ophiuchus:OphiuchusPublishedRubric",
        "segmentation_published": "medvista_ray.rewards.segmentation:SegmentationPublishedRubric",
    }
)


def make_rubric(spec: str) -> Rubric:
    """Make a rubric by its name, or from `pkg.module:Class`; `ConfigError` says what is wrong with it."""
    module_name, colon, class_name = BUILTIN_RUBRICS.get(spec, spec).partition(":")
    if not (colon and module_name and class_name):
        known = ", ".join(BUILTIN_RUBRICS)
        raise ConfigError(f"env.rubric: no rubric {spec!r}; use one of {known}, or pkg.module:Class")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, TypeError) as error:  # a relative name is a TypeError
        raise ConfigError(f"env.rubric={spec!r}: cannot import {module_name!r}: {error}") from error
    kind = getattr(module, class_name, None)
    if not (isinstance(kind, type) and callable(getattr(kind, "score", None))):
        raise ConfigError(f"env.rubric={spec!r}: {module_name} has no class {class_name!r} with a method `score`")
    _check_makes_itself(kind, spec)
    rubric: Rubric = kind()
    return rubric


def _check_makes_itself(kind: type, spec: str) -> None:
    needed = [
        name
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise ConfigError(f"env.rubric={spec!r}: the class needs {needed[0]!r} to be made; give it a default")
