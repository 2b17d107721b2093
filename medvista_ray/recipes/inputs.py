"""What a run starts from, as one digest: the version, the policy folder, the data. Settings name them; files change."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path

from medvista_ray import __version__
from medvista_ray.config.schema import RunConfig
from medvista_ray.data.sources import DRAWN_SETS
from medvista_ray.policy.loading import resolve_policy_path

_MAX_READ_BYTES = 2**26  # of a larger file size and date stand in: hashing an 8B model takes minutes


def compute_input_digest(config: RunConfig) -> str:
    """Digest the files behind `policy.path` and `data.source`, and the version of the package."""
    digest = hashlib.sha256(__version__.encode())
    for path in sorted(resolve_policy_path(config.policy.path).iterdir()):
        if path.suffix in (".json", ".jinja", ".safetensors"):
            _add_file(digest, path)
    if config.data.source in DRAWN_SETS:
        digest.update(resources.files("medvista_ray.data").joinpath("manifest.json").read_bytes())
    else:
        _add_file(digest, Path(config.data.source) / "tasks.jsonl")
    return digest.hexdigest()[:16]


def _add_file(digest: hashlib._Hash, path: Path) -> None:
    status = path.stat()
    digest.update(path.name.encode())
    if status.st_size <= _MAX_READ_BYTES:
        digest.update(path.read_bytes())
    else:
        digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
