"""Load and save a policy folder: an ordinary Hugging Face folder of the Qwen3-VL or Qwen2.5-VL family.

Importable without torch; everything heavy is imported by the functions that need it.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvista_ray.errors import ConfigError, MissingPackageError
from medvista_ray.policy import torchvision_shim

if TYPE_CHECKING:
    import torch

    from medvista_ray.policy.forward import PolicyNetwork

FAMILIES = ("qwen3_vl", "qwen2_5_vl")
BUILTIN_PREFIX = "builtin:"
BUILTIN_FOLDERS = {"builtin:tiny_base": "tiny_base"}
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".index.json")
_CARDS = ("base_card.json", "README.md")  # they speak of the weights before training
_ABOUT_THE_WEIGHTS = ("README.md", "base_card.json")  # they speak of the initial weights, not of what is trained


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Policy:
    """A loaded policy. `network` is the entry for every forward pass and shares its weights with `model`."""

    model: Any  # the Hugging Face ForConditionalGeneration, in eval()
    network: PolicyNetwork
    family: str
    image_token_id: int
    vocab_size: int
    max_length: int  # tokens that the position table was made for
    folder: Path

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        device: torch.device = self.model.device
        return device


def resolve_policy_path(path: str) -> Path:
    """Return the folder that `policy.path` names; `ConfigError` unless it holds a config.json."""
    if path.startswith(BUILTIN_PREFIX):
        if path not in BUILTIN_FOLDERS:
            raise ConfigError(f"policy.path={path!r} is not a built-in policy; choose {sorted(BUILTIN_FOLDERS)}")
        folder = Path(__file__).parent / BUILTIN_FOLDERS[path]
    else:
        folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"policy.path={path!r} is not a folder; give a Hugging Face folder or {sorted(BUILTIN_FOLDERS)}"
        )
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"policy.path={path!r} has no config.json; give a folder that `save_pretrained` or a model hub wrote"
        )
    return folder


def read_family(folder: Path) -> str:
    """Return the model family that config.json names; `ConfigError` for one that is not supported."""
    try:
        family = json.loads((folder / "config.json").read_text()).get("model_type")
    except json.JSONDecodeError as error:
        raise ConfigError(f"policy.path={str(folder)!r}: config.json is not JSON ({error}); copy it again") from error
    if family not in FAMILIES:
        raise ConfigError(
            f"policy.path={str(folder)!r} is of family {family!r}; supported are {FAMILIES} (Qwen3-VL, Qwen2.5-VL)"
        )
    return str(family)


def load_policy(path: str | Path, *, dtype: str = "float32", device: str = "auto") -> Policy:
    """Load a policy for inference or training; it is in eval() and its attention is `sdpa`.

    Args:
        path: `policy.path` of the configuration, or a folder.
        dtype: float32 or bfloat16.
        device: `auto` takes cuda where there is one.
    """
    folder = resolve_policy_path(str(path))
    family = read_family(folder)
    torch, transformers = _import_torch()
    from safetensors import SafetensorError

    from medvista_ray.policy.forward import PolicyNetwork
    from medvista_ray.policy.patch_embedding import use_linear_patches

    transformers.utils.logging.disable_progress_bar()
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        model, report = transformers.AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            attn_implementation="sdpa",
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"policy.path={str(path)!r} does not load: {error}; check its weight files") from error
    if missing := sorted(report["missing_keys"]):  # they would be random
        raise ConfigError(
            f"policy.path={str(path)!r} lacks {len(missing)} weights, the first is {missing[0]!r}; copy it again"
        )
    model = model.to(where).eval()
    use_linear_patches(model)
    return Policy(
        model=model,
        network=PolicyNetwork(model).eval(),
        family=family,
        image_token_id=int(model.config.image_token_id),
        vocab_size=int(model.config.text_config.vocab_size),
        max_length=int(model.config.text_config.max_position_embeddings),
        folder=folder,
    )


def save_policy(policy: Policy, folder: Path, *, state: Mapping[str, torch.Tensor] | None = None) -> Path:
    """Write an ordinary Hugging Face folder: weights, and copies of tokenizer, processor and template; no model card.

    Args:
        policy: what to write.
        folder: made if missing.
        state: the full weights by the model's own names, where the model itself holds only a shard.
    """
    folder.mkdir(parents=True, exist_ok=True)
    policy.model.save_pretrained(folder, state_dict=None if state is None else dict(state))
    for source in sorted(policy.folder.iterdir()):
        target = folder / source.name
        is_other = source.name.endswith(_WEIGHT_SUFFIXES) or source.name in _ABOUT_THE_WEIGHTS
        if source.is_file() and not is_other and not target.exists():
            shutil.copyfile(source, target)
    return folder


def _import_torch() -> tuple[Any, Any]:
    torchvision_shim.install()
    try:
        import torch
        import transformers

        importlib.import_module("torchvision")  # the image processors need it
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"{error.name} is not installed; a policy needs it: pip install 'medvista-ray[train]'"
        ) from error
    return torch, transformers
