"""`dicom_info` tells the header that a task holds of an image, of its views and slices, and of nothing else."""

from __future__ import annotations

import pytest
from test_tools_views import call
from test_tools_window import WG04

from medvista_ray.errors import ToolArgumentError
from medvista_ray.images.codec import digest_of, encode_png, make_ref
from medvista_ray.images.files import read_image_file
from medvista_ray.images.store import MemoryBlobCache
from medvista_ray.images.volumes import encode_volume
from medvista_ray.tools.base import CallKey
from medvista_ray.tools.renderer import ViewRenderer
from medvista_ray.tools.runner import make_tool_runner
from medvista_ray.tools.shelf import ImageShelf
from medvista_ray.types.messages import Task, VolumeRef
from medvista_ray.types.tool_calls import ToolCall


def make_header_shelf():
    import numpy as np

    file = read_image_file(WG04 / "RG1_UNCR.dcm")
    plain = encode_png(np.zeros((20, 30, 3), np.uint8))
    volume = encode_volume(np.zeros((9, 8, 7), np.int16))
    blobs = MemoryBlobCache()
    refs = [
        make_ref(file.data, mime=file.mime, width=file.width, height=file.height),
        make_ref(plain, mime="image/png", width=30, height=20),
    ]
    for data in (file.data, plain, volume):
        blobs.put(data)
    volume_ref = VolumeRef(digest=digest_of(volume), shape=(9, 8, 7), spacing_mm=(1.0, 1.0, 1.0))
    task = Task(
        task_id="t", family="f", question="q", images=tuple(refs), volumes=(volume_ref,),
        headers={refs[0].digest: file.header, volume_ref.digest: {"modality": "MR", "echo_time_ms": 12.34567891}},
    )  # fmt: skip
    return ImageShelf(task, renderer=ViewRenderer(blobs, view_size_px=64))


def test_the_header_of_a_source_and_of_what_is_made_of_it():
    shelf = make_header_shelf()
    output, images = call(shelf, "dicom_info")
    assert images == ()
    lines = output.text.splitlines()
    assert lines[0] == "modality: CR"
    assert {"view_position: PA", "tube_voltage_kv: 150", "burned_in_annotation: unknown", "rows: 1955"} <= set(lines)
    call(shelf, "zoom", bbox=[0, 0, 500, 500])
    call(shelf, "enhance", method="gamma", image=3)
    for index in (3, 4):
        assert call(shelf, "dicom_info", image=index)[0].text == output.text
    call(shelf, "get_slice", plane="coronal", index=3, image=2)
    assert call(shelf, "dicom_info", image=5)[0].text == "modality: MR\necho_time_ms: 12.3457"


def test_an_image_without_a_header():
    with pytest.raises(ToolArgumentError, match="image 1 has no DICOM header"):
        call(make_header_shelf(), "dicom_info", image=1)


def test_headers_travel_to_workers():
    shelf = make_header_shelf()
    runner = make_tool_runner(["enhance"], timeout_s=60, num_workers=1)
    try:
        call_of = ToolCall(name="enhance", arguments={"method": "gamma", "image": 1})
        outcome = runner.run(call_of, shelf=shelf, key=CallKey())
        assert outcome.failure is None, outcome.text
    finally:
        runner.close()
