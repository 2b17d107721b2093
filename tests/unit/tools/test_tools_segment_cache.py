"""`segment` on views of one source: each has its own embedding; an object keeps its area however it is shown."""

from __future__ import annotations

import numpy as np
import pytest
from test_tools_segment import BRIGHT, KEY, LEFT, dice, make_shelf
from test_tools_window import shelf_of

from medvista_ray.tools.base import ServiceCall
from medvista_ray.tools.litemedsam import Embedding
from medvista_ray.tools.registry import load_tool
from medvista_ray.tools.segment import Segment, SegmentClassical

ALL = [0, 0, 1000, 1000]


class PictureModel:
    """Stands where LiteMedSAM does: its embedding is the picture itself, its mask what is bright in that."""

    def __init__(self):
        self.num_embedded = 0

    def embed(self, pixels):
        self.num_embedded += 1
        return Embedding(values=pixels, size_px=pixels.shape[1::-1], inner_px=pixels.shape[1::-1])

    def segment(self, embedding, box):
        x0, y0, x1, y1 = (round(side) for side in box)
        mask = np.zeros(embedding.values.shape[:2], np.bool_)
        mask[y0:y1, x0:x1] = embedding.values[y0:y1, x0:x1].mean(axis=2) > 110
        return mask


def make_segment():
    tool = Segment()
    tool._model = PictureModel()
    return tool, tool._model


def show(shelf, name, **arguments):
    shelf.add(load_tool(name).run(arguments, shelf.context(KEY)).images)
    return len(shelf.records) - 1


def segment(tool, shelf, **arguments):
    (output,) = tool.run_batch([ServiceCall(arguments=arguments, context=shelf.context(KEY))])
    assert not isinstance(output, Exception), output
    shelf.add(output.images)
    return output, shelf.context(KEY).image(len(shelf.records) - 1)


def test_a_view_is_not_segmented_by_the_embedding_of_another():
    tool, model = make_segment()
    shelf = make_shelf()
    _, whole = segment(tool, shelf, bbox=[150, 250, 480, 750])
    assert dice(whole.source_mask(), LEFT) > 0.97
    views = [
        show(shelf, "zoom", bbox=[125, 250, 500, 750]),
        show(shelf, "flip_rotate", operation="flip_horizontal"),
        show(shelf, "flip_rotate", operation="rotate_90"),
    ]
    boxes = [ALL, [520, 250, 850, 750], None]
    for count, (view, box) in enumerate(zip(views, boxes, strict=True), start=2):
        _, image = segment(tool, shelf, image=view, bbox=box or ALL)
        expected = BRIGHT > 110 if box is None else LEFT
        assert dice(image.source_mask(), expected) > 0.93, view
        assert model.num_embedded == count
    segment(tool, shelf, image=views[0], bbox=ALL)
    segment(tool, shelf, bbox=ALL)
    assert model.num_embedded == 4


def test_another_window_is_another_embedding():
    tool, model = make_segment()
    values = np.where(LEFT, 300, -60).astype(np.int16)
    shelf = shelf_of(values, modality="CT")
    wide = show(shelf, "window_level", center=40, width=10_000)  # all of it is a middle grey there
    _, image = segment(tool, shelf, bbox=ALL)
    assert dice(image.source_mask(), LEFT) > 0.97
    _, image = segment(tool, shelf, image=wide, bbox=ALL)
    assert image.source_mask().all()
    assert model.num_embedded == 2


@pytest.mark.parametrize("operation", ["rotate_90", "rotate_180", "rotate_270", "flip_horizontal", "flip_vertical"])
@pytest.mark.parametrize("make", [SegmentClassical, make_segment], ids=["classical", "model"])
def test_the_area_of_an_object_is_that_of_the_upright_image(operation, make):
    tool = SegmentClassical() if make is SegmentClassical else make_segment()[0]
    one = np.where(LEFT, BRIGHT, 40).astype(np.uint8)
    shelf = make_shelf(one, view_size_px=one.shape[1])
    turned = show(shelf, "flip_rotate", operation=operation)
    areas = []
    for view in (0, turned):
        output = tool.run({"image": view, "bbox": ALL}, shelf.context(KEY))
        areas.append(float(output.text.split()[1]))
    assert areas[0] == pytest.approx(LEFT.sum() * 0.5 * 0.25, rel=0.03)
    assert areas[1] == pytest.approx(areas[0], rel=0.001)
