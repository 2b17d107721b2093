"""NIfTI volumes of a user's own folder: RAS order, units, and one line where a file is none."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medvista_ray.data.folder import FolderTaskSource
from medvista_ray.errors import DataError
from medvista_ray.images.codec import encode_png
from medvista_ray.images.volumes import decode_volume
from medvista_ray.images.windowing import PRESETS

ROW = {"task_id": "t1", "split": "train", "question": "Which letter?", "images": ["a.png"], "answer": "L"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.png").write_bytes(encode_png(np.zeros((6, 9, 3), dtype=np.uint8)))
    return tmp_path


def write(folder, row):
    (folder / "tasks.jsonl").write_text(json.dumps(row))


def save_volume(path, values, affine):
    import nibabel

    nibabel.save(nibabel.Nifti1Image(values, affine), path)


def test_volumes_are_brought_to_ras_order(folder):
    """Stored with x to the left and z first, as scanners do; the voxel at known millimetres stays where it was."""
    values = np.zeros((4, 5, 6), dtype=np.int16)
    values[1, 2, 5] = -700
    affine = np.array([[0, 0, -2.0, 0], [0, 3.0, 0, 0], [1.5, 0, 0, 0], [0, 0, 0, 1]])  # axes z, y, -x
    save_volume(folder / "smith_john.nii.gz", values, affine)
    write(folder, {**ROW, "volumes": ["smith_john.nii.gz"], "modality": "CT"})
    record = FolderTaskSource(folder, "train")[0]
    (ref,) = record.task.volumes
    assert (ref.shape, ref.spacing_mm, ref.modality) == ((6, 5, 4), (2.0, 3.0, 1.5), "CT")
    read = decode_volume(record.blobs[ref.digest])
    assert read.dtype == np.int16
    assert (read == -700).nonzero() == ([0], [2], [1])  # x is turned round
    assert "smith" not in repr(record)


def test_volumes_without_hounsfield_units_are_put_on_the_display_scale(folder):
    values = np.random.default_rng(1).integers(0, 4000, (8, 8, 8)).astype(np.uint16)
    save_volume(folder / "v.nii", values, np.eye(4))
    write(folder, {**ROW, "images": [], "volumes": ["v.nii"]})
    record = FolderTaskSource(folder, "train")[0]
    read = decode_volume(record.blobs[record.task.volumes[0].digest])
    center, width = PRESETS["soft_tissue"]
    assert np.percentile(read, [1, 99.5]) == pytest.approx([center - width / 2, center + width / 2], abs=0.1)


@pytest.mark.parametrize("kind", ["text", "4-D", "not finite"])
def test_a_volume_that_is_none_is_one_line(folder, kind):
    if kind == "text":
        (folder / "v.nii").write_text("text")
    else:
        values = np.zeros((3, 3, 3, 2) if kind == "4-D" else (3, 3, 3), dtype=np.float32)
        values.flat[0] = np.nan
        save_volume(folder / "v.nii", values, np.eye(4))
    write(folder, {**ROW, "volumes": ["v.nii"]})
    with pytest.raises(DataError, match=r"tasks\.jsonl line 1: volume 'v\.nii'") as caught:
        _ = FolderTaskSource(folder, "train")[0]
    assert "\n" not in str(caught.value)
    write(folder, {**ROW, "images": ["v.nii"]})
    with pytest.raises(DataError, match="a NIfTI file is a volume"):
        _ = FolderTaskSource(folder, "train")[0]
