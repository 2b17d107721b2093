"""Open an ONNX model with onnxruntime, with as many threads as this process was given and no more."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from medvista_ray.errors import MissingPackageError


def num_threads() -> int:
    """Return OMP_NUM_THREADS, which a service sets for its process; 1 when it is not set."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(value)) if value.isdigit() else 1


def import_onnxruntime(*, extra: str) -> Any:
    """Return the module; `MissingPackageError` names the extra that brings it."""
    try:
        import onnxruntime
    except ImportError as error:
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({error})"
        raise MissingPackageError(f"onnxruntime {why}: pip install 'medvista-ray[{extra}]'") from error
    return onnxruntime


def open_session(path: Path, *, extra: str) -> Any:
    """Load a model for the CPU; `MissingPackageError` names the extra that brings onnxruntime."""
    onnxruntime = import_onnxruntime(extra=extra)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
