"""The exported folder is an ordinary Hugging Face one: it loads without this package and gives the same logits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from learner_batches import make_shards

from medvista_ray.policy.image_processor import ImageProcessor
from medvista_ray.policy.loading import load_policy

PLAIN = """
import sys

import numpy as np
import torch

if torch.version.cuda is None:  # the torchvision wheel is built for CUDA; any program beside a CPU torch needs this
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from transformers import AutoModelForImageTextToText, AutoTokenizer

folder, inputs, out = sys.argv[1:]
torch.set_num_threads(1)
given = {name: torch.from_numpy(array) for name, array in np.load(inputs).items()}
model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
with torch.no_grad():
    logits = model(**given).logits
np.save(out, logits.numpy())
assert AutoTokenizer.from_pretrained(folder)("<|im_end|>")["input_ids"]
assert not [name for name in sys.modules if name.startswith("medvista")]
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_loads_with_plain_transformers(make_rank, samples, images, tmp_path: Path, dtype: str) -> None:
    rank = make_rank(dtype=dtype)
    (shard,) = make_shards([samples])
    rank.begin_batch(shard, images)
    rank.finish_batch()
    folder = tmp_path / "export"
    rank.export(folder)

    sample = samples[0]
    digests = [span.digest for span in sample.image_spans]
    prepared = ImageProcessor(folder).prepare_encoded(digests, images)
    policy = load_policy(folder, device="cpu")
    ids = sample.token_ids.astype(np.int64)[None]
    given = {
        "input_ids": ids,
        "mm_token_type_ids": (ids == policy.image_token_id).astype(np.int64),
        "pixel_values": torch.cat([prepared[digest].pixel_values for digest in digests]).numpy(),
        "image_grid_thw": torch.cat([prepared[digest].grid_thw for digest in digests]).numpy(),
    }
    np.savez(tmp_path / "inputs.npz", **given)
    command = [sys.executable, "-c", PLAIN, str(folder), str(tmp_path / "inputs.npz"), str(tmp_path / "logits.npy")]
    done = subprocess.run(command, cwd=tmp_path, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "logits.npy")

    if dtype == "float32":  # what was trained is what was written
        state = rank.full_state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in policy.model.state_dict().items())
    with torch.no_grad():
        expected = policy.model(**{name: torch.from_numpy(array) for name, array in given.items()}).logits.numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
