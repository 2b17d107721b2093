import sys
from types import ModuleType

import numpy as np
import pytest

from medvista_ray.errors import ToolArgumentError
from medvista_ray.images.codec import encode_png, make_ref
from medvista_ray.images.store import MemoryBlobCache
from medvista_ray.tools.base import CallKey, ServiceCall
from medvista_ray.tools.litemedsam import SIDE_PX, fit_square, model_folder
from medvista_ray.tools.region_growing import divide, segment_by_box, segment_by_points
from medvista_ray.tools.registry import load_tool
from medvista_ray.tools.renderer import ViewRenderer
from medvista_ray.tools.runner import make_tool_runner
from medvista_ray.tools.segment import MAX_SIDE_PX, Segment, SegmentClassical
from medvista_ray.tools.shelf import ImageShelf
from medvista_ray.types.messages import PNG_MIME, Task
from medvista_ray.types.tool_calls import ToolCall, ToolFailure

KEY = CallKey()
ROWS, COLUMNS = np.mgrid[:120, :160]


def disc(x, y, radius):
    return (COLUMNS - x) ** 2 + (ROWS - y) ** 2 <= radius**2


LEFT, RIGHT = disc(50, 60, 20), disc(110, 60, 20)
NOISE = np.random.default_rng(0).normal(0, 6, ROWS.shape)
BRIGHT = np.clip(40 + 140 * (LEFT | RIGHT) + NOISE, 0, 255).astype(np.uint8)


def dice(first, second):
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


def make_shelf(pixels=BRIGHT, *, spacing=(0.5, 0.25), view_size_px=64):
    blobs, data = MemoryBlobCache(), encode_png(pixels)
    blobs.put(data)
    ref = make_ref(data, mime=PNG_MIME, width=pixels.shape[1], height=pixels.shape[0], spacing_mm=spacing)
    task = Task(task_id="t", family="f", question="q", images=(ref,))
    return ImageShelf(task, renderer=ViewRenderer(blobs, view_size_px=view_size_px))


def call(shelf, **arguments):
    output = SegmentClassical().run(arguments, shelf.context(KEY))
    shelf.add(output.images)
    return output, shelf.context(KEY).image(len(shelf.records) - 1)


@pytest.mark.parametrize("pixels", [BRIGHT, 255 - BRIGHT], ids=["bright", "dark"])
def test_a_box_finds_the_object_whichever_side_it_is_on(pixels):
    shelf = make_shelf(pixels)
    output, image = call(shelf, bbox=[28, 38, 72, 82], unit="pixels")
    assert dice(image.source_mask(), LEFT) > 0.97
    assert not (image.source_mask() & RIGHT).any()
    assert output.text.startswith(f"area {int(image.source_mask().sum()) * 0.5 * 0.25:.1f} mm2, box [")


def test_the_box_of_the_answer_is_that_of_the_mask_in_thousandths():
    square = np.zeros((100, 200), np.uint8)
    square[20:50, 40:100] = 200
    for spacing, area in (((0.5, 0.5), "449.0 mm2"), (None, "1796 pixels of the source")):
        shelf = make_shelf(square, spacing=spacing)
        output, image = call(shelf, bbox=[100, 100, 600, 600])
        assert output.text == f"area {area}, box [200, 200, 500, 500]"
        assert (image.source_mask() ^ (square > 0)).sum() == 4  # the smoothing takes the corners


def test_points_grow_regions_and_negative_ones_take_away():
    both = segment_by_points(BRIGHT, [(50, 60), (110, 60)], [])
    assert dice(both, LEFT | RIGHT) > 0.97
    assert dice(segment_by_points(BRIGHT, [(50, 60)], []), LEFT) > 0.97
    within = segment_by_points(BRIGHT, [(50, 60)], [], box=(30, 40, 50, 80))
    assert dice(within, LEFT & (COLUMNS < 50) & (COLUMNS >= 30)) > 0.97
    touching = disc(60, 60, 20) | disc(96, 60, 20)
    pixels = np.where(touching, 180, 40).astype(np.uint8)
    assert segment_by_points(pixels, [(60, 60)], [])[60, 96]
    parted = segment_by_points(pixels, [(60, 60)], [(96, 60)])
    assert parted[60, 60]
    assert not parted[60, 96]
    unnamed = divide(pixels, touching, [], [(96, 60)])
    assert unnamed[60, 60]
    assert not unnamed[60, 96]


def test_a_region_that_runs_to_the_rim_keeps_the_objects_in_it_out():
    background = segment_by_points(BRIGHT, [(5, 5)], [])
    assert dice(background, ~(LEFT | RIGHT)) > 0.97
    ring = np.where(LEFT & ~disc(50, 60, 8), 180, 40).astype(np.uint8)
    assert dice(segment_by_points(ring, [(50, 45)], []), LEFT) > 0.95  # a hole is filled


def test_a_flat_box_holds_nothing():
    assert not segment_by_box(np.full((20, 20), 7, np.uint8), (2, 2, 18, 18)).any()
    shelf = make_shelf(np.full((20, 20), 7, np.uint8))
    with pytest.raises(ToolArgumentError, match="nothing stands out"):
        call(shelf, bbox=[100, 100, 900, 900])


def test_a_mask_of_a_zoomed_image_lies_where_it_belongs():
    shelf = make_shelf()
    shelf.add(load_tool("zoom").run({"bbox": [125, 250, 500, 750]}, shelf.context(KEY)).images)
    output, image = call(shelf, image=1, bbox=[100, 100, 900, 900])
    assert dice(image.source_mask(), LEFT) > 0.93
    assert abs(float(output.text.split()[1]) - LEFT.sum() * 0.125) < 0.05 * LEFT.sum() * 0.125


def test_a_large_image_is_shrunk_and_its_mask_comes_back_at_full_size():
    scale = 20
    pixels = np.kron(BRIGHT, np.ones((scale, scale), np.uint8))
    assert max(pixels.shape) > MAX_SIDE_PX
    shelf = make_shelf(pixels)
    output, image = call(shelf, bbox=[150, 250, 480, 750])
    assert max(output.images[0].pixels.shape) == MAX_SIDE_PX
    assert dice(image.source_mask(), np.kron(LEFT, np.ones((scale, scale), bool))) > 0.97


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "bbox, or at least one point"),
        ({"points": [[1, 1]], "labels": [0]}, "bbox, or at least one point"),
        ({"points": [[1, 1]], "labels": [1, 0]}, "1 points and 2 labels"),
        ({"points": [[1, 1001]]}, "outside"),
        ({"bbox": [5, 5, 5, 9]}, "empty"),
        ({"bbox": [1, 1, 9, 9], "image": 3}, "no image 3"),
    ],
)
def test_prompts_that_make_no_sense(arguments, message):
    with pytest.raises(ToolArgumentError, match=message):
        SegmentClassical().run(arguments, make_shelf().context(KEY))
    (error,) = Segment().run_batch([ServiceCall(arguments=arguments, context=make_shelf().context(KEY))])
    assert isinstance(error, ToolArgumentError)
    assert message in str(error)


def test_without_weights_the_model_tool_says_that_it_falls_back(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVISTA_CACHE", str(tmp_path))
    tool = Segment()
    tool.warm_up()
    shelf = make_shelf()
    arguments = {"bbox": [28, 38, 72, 82], "unit": "pixels"}
    output = tool.run(arguments, shelf.context(KEY))
    assert output.text.startswith(
        "fallback: region growing and threshold; LiteMedSAM needs medvista tools prepare segment\n"
    )
    plain = SegmentClassical().run(arguments, shelf.context(KEY))
    assert output.text.endswith(plain.text)
    assert np.array_equal(output.images[0].mask, plain.images[0].mask)


@pytest.mark.parametrize("is_prepared", [False, True])
def test_without_onnxruntime_it_falls_back_whether_prepared_or_not(tmp_path, monkeypatch, is_prepared):
    monkeypatch.setenv("MEDVISTA_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    if is_prepared:
        model_folder().mkdir(parents=True)
        (model_folder() / "record.json").write_text("{}")
    tool = Segment()
    tool.warm_up()
    output = tool.run({"bbox": [28, 38, 72, 82], "unit": "pixels"}, make_shelf().context(KEY))
    needs = "pip install 'medvista-ray[segment]'" + ("" if is_prepared else " and medvista tools prepare segment")
    assert output.text.startswith(f"fallback: region growing and threshold; LiteMedSAM needs {needs}\narea ")


def test_damaged_weights_are_named_and_another_way_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVISTA_CACHE", str(tmp_path))
    model_folder().mkdir(parents=True)
    (model_folder() / "record.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    tool = Segment()
    tool.warm_up()
    output = tool.run({"bbox": [28, 38, 72, 82], "unit": "pixels"}, make_shelf().context(KEY))
    assert "record.json is damaged: delete" in output.text.splitlines()[0]
    assert output.text.splitlines()[1].startswith("area ")


def test_the_two_makes_share_a_name_and_cannot_be_offered_together():
    assert load_tool("segment_classical").name == load_tool("segment").name == "segment"
    assert load_tool("segment_classical").parameters == load_tool("segment").parameters


def test_the_classical_one_runs_in_a_worker(tmp_path):
    runner = make_tool_runner(["segment_classical"], timeout_s=20, num_workers=1)
    try:
        shelf = make_shelf()
        outcome = runner.run(ToolCall(name="segment", arguments={"points": [[312, 500]]}), shelf=shelf, key=KEY)
        assert outcome.failure is None, outcome.text
        assert dice(shelf.context(KEY).image(1).source_mask(), LEFT) > 0.97
        bad = ToolCall(name="segment", arguments={"points": [[312, 500]], "labels": ["+"]})
        assert runner.run(bad, shelf=shelf, key=KEY).failure is ToolFailure.BAD_SCHEMA
    finally:
        runner.close()


def test_an_image_is_fitted_into_the_square_of_the_model():
    pixels = np.repeat(BRIGHT[..., None], 3, axis=2)
    square, (width, height) = fit_square(pixels)
    assert square.shape == (1, 3, SIDE_PX, SIDE_PX)
    assert (width, height) == (256, 192)
    assert (square.min(), square.max()) == (0.0, 1.0)
    assert not square[0, :, height:].any()
    assert square[0, 0, 96, 80] > 0.7  # the middle of the left disc
    flat, inner = fit_square(np.full((1, 1000, 3), 9, np.uint8))
    assert inner == (256, 1)
    assert not flat.any()
