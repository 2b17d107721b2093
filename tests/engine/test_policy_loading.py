"""Loading, saving, the torchvision shim, the image processor and weight files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from medvista_ray.errors import ConfigError, ImageError, WeightsRefusedError
from medvista_ray.policy.distribution import gather, processed_logprobs
from medvista_ray.policy.image_processor import ImageProcessor
from medvista_ray.policy.loading import Policy, load_policy, resolve_policy_path, save_policy
from medvista_ray.policy.weights import (
    load_weights,
    named_weights,
    read_weights,
    weights_checksum,
    write_weights,
)
from medvista_ray.types.sampling import SamplingSpec

_CHILD = """
import sys
from medvista_ray.policy import torchvision_shim
torchvision_shim.install(); torchvision_shim.install()
assert "torch" not in sys.modules and "torchvision" not in sys.modules
from medvista_ray.policy.image_processor import ImageProcessor
print(ImageProcessor(__import__("pathlib").Path(sys.argv[1])).version)
"""


def test_the_shim_loads_no_torch_by_itself_and_works_in_a_child(policy_folders: dict[str, Path]) -> None:
    folder = policy_folders["qwen3_vl"]
    answer = subprocess.run(
        [sys.executable, "-c", _CHILD, str(folder)], check=True, capture_output=True, text=True, timeout=60
    )
    assert answer.stdout.strip() == ImageProcessor(folder).version
    assert answer.stdout.startswith("Qwen2VLImageProcessor-")


def test_loading_imports_no_torch_until_a_policy_is_loaded() -> None:
    code = (
        "import sys, medvista_ray.policy.loading as m; m.resolve_policy_path; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_a_loaded_policy_is_ready_to_use(policy: Policy, family: str) -> None:
    assert policy.family == family
    assert not policy.model.training
    assert policy.model.config._attn_implementation == "sdpa"
    assert policy.model.lm_head.weight.shape[0] == policy.vocab_size
    assert policy.network.model is policy.model


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("builtin:huge", "builtin:tiny_base"),
        ("/nowhere/at/all", "is not a folder"),
    ],
)
def test_a_wrong_path_names_key_value_and_remedy(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolve_policy_path(path)
    assert "policy.path" in str(caught.value)
    assert path in str(caught.value)


def test_a_folder_without_config_and_another_family_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy\.path=.*has no config\.json"):
        load_policy(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ConfigError, match=r"policy\.path=.*'llama'.*Qwen3-VL"):
        load_policy(tmp_path)


def test_damaged_weight_files_are_a_user_error(policy_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(policy_folders["qwen3_vl"], tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ConfigError, match=r"policy\.path=.*does not load"):
        load_policy(folder)


def test_missing_weights_are_not_made_up(policy_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(policy_folders["qwen3_vl"], tmp_path / "partial")
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks 1 weights.*lm_head\.weight"):
        load_policy(folder)


def test_a_saved_policy_is_an_ordinary_folder(policy: Policy, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    with torch.no_grad():
        policy.model.lm_head.weight.mul_(1.5)
    folder = save_policy(policy, tmp_path / "saved")
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    conversation = [{"role": "user", "content": [{"type": "text", "text": "read"}]}]
    assert "<|im_start|>user" in processor.apply_chat_template(conversation, tokenize=False)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    saved, kept = named_weights(model), named_weights(policy.model)
    assert saved.keys() == kept.keys()
    assert all(torch.equal(saved[name], kept[name]) for name in kept)
    assert {path.name for path in policy.folder.iterdir()} == {path.name for path in folder.iterdir()}


def test_prepared_images_are_those_of_the_stock_processor(policy: Policy) -> None:
    from transformers import AutoImageProcessor

    stock = AutoImageProcessor.from_pretrained(policy.folder, local_files_only=True)
    rng = np.random.default_rng(0)
    sizes = ((84, 84), (30, 70), (84, 84), (112, 84), (3, 40))
    images = [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]
    prepared = ImageProcessor(policy.folder).prepare(images)
    for image, one in zip(images, prepared.split(), strict=True):
        alone = stock(images=[image], return_tensors="pt", input_data_format="channels_last")
        assert torch.equal(one.pixel_values, alone["pixel_values"])
        assert torch.equal(one.grid_thw, alone["image_grid_thw"])


def test_the_image_cache_is_bounded_and_a_bad_image_harms_no_other(
    policy_folders: dict[str, Path], images: dict[str, bytes]
) -> None:
    one = ImageProcessor(policy_folders["qwen3_vl"]).prepare_encoded(list(images)[:1], images)
    size = next(iter(one.values())).size_bytes
    processor = ImageProcessor(policy_folders["qwen3_vl"], cache_bytes=2 * size)
    found, failed = processor.try_prepare_encoded([*images, "bad"], images | {"bad": b"no image"})
    assert list(found) == list(images)
    assert isinstance(failed["bad"], ImageError)
    assert 1 <= len(images) - len(processor.missing(images)) <= 3
    with pytest.raises(ImageError):
        processor.prepare_encoded(["bad"], {"bad": b"no image"})


def test_weights_round_trip_and_the_checksum_sees_one_changed_value(policy: Policy, tmp_path: Path) -> None:
    weights = {name: tensor.detach().clone() for name, tensor in named_weights(policy.model).items()}
    digest = write_weights(weights, tmp_path / "w.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]
    before = weights_checksum(named_weights(policy.model))
    with torch.no_grad():
        policy.model.lm_head.weight[3, 4] += 1.0
    assert weights_checksum(named_weights(policy.model)) != before
    read = read_weights(tmp_path / "w.safetensors", digest=digest, expected=weights)
    load_weights(policy.model, read)
    assert weights_checksum(named_weights(policy.model)) == before == weights_checksum(read)


def test_a_missing_weight_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsRefusedError, match="cannot be read"):
        read_weights(tmp_path / "gone.safetensors", digest="0" * 64, expected={})


def test_processed_logprobs_are_a_distribution_without_the_banned() -> None:
    logits = torch.randn(3, 11, dtype=torch.float64).requires_grad_()
    spec = SamplingSpec(temperature=0.5, banned_token_ids=(0, 7))
    logprobs = processed_logprobs(logits, spec)
    assert logprobs.dtype == torch.float32
    assert torch.isneginf(logprobs[:, [0, 7]]).all()
    allowed = [i for i in range(11) if i not in (0, 7)]
    expected = torch.log_softmax(logits[:, allowed].float() / 0.5, -1)
    assert torch.allclose(logprobs[:, allowed], expected, atol=1e-6)
    gather(logprobs, torch.tensor([1, 2, 3], dtype=torch.int32)).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
