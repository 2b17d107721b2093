"""What the conversion of LiteMedSAM needs is said at once, with what brings it."""

import sys

import pytest

from medvista_ray.errors import MissingPackageError
from medvista_ray.recipes.convert_litemedsam import prepare_segment


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (("torch",), r"not installed: torch: pip install 'medvista-ray\[train\]'"),
        (("torch", "onnx"), r"not installed: torch, onnx: pip install 'medvista-ray\[train,segment\]'"),
        (("onnx", "onnxruntime"), r"not installed: onnx, onnxruntime: pip install 'medvista-ray\[segment\]'"),
    ],
)
def test_all_that_is_missing_is_named_before_anything_is_fetched(missing, message, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVISTA_CACHE", str(tmp_path))
    for name in ("torch", "onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None if name in missing else sys)
    with pytest.raises(MissingPackageError, match=f"needs torch, onnx, onnxruntime; {message}"):
        prepare_segment(lambda text: pytest.fail(text))
    assert not list(tmp_path.iterdir())
