import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvista_ray.errors import ImageError, ToolArgumentError, ToolError
from medvista_ray.images.codec import encode_npy, encode_png, make_ref
from medvista_ray.images.store import MemoryBlobCache
from medvista_ray.images.windowing import PRESETS
from medvista_ray.tools.base import CallKey, Picture
from medvista_ray.tools.registry import load_tool
from medvista_ray.tools.renderer import SizedCache, ViewRenderer
from medvista_ray.tools.shelf import ImageShelf
from medvista_ray.tools.views import Orientation, View, Window, draw_view
from medvista_ray.types.messages import NPY_MIME, PNG_MIME, Task

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, size=(90, 120, 3), dtype=np.uint8)
VALUES = RNG.integers(-1000, 3000, size=(60, 84)).astype(np.int16)

PNG, NPY = encode_png(GREY), encode_npy(VALUES)


def make_shelf(*, view_size_px=30, values=VALUES, spacing=(0.5, 0.25)):
    blobs = MemoryBlobCache()
    png, npy = PNG, NPY if values is VALUES else encode_npy(values)
    images = (
        make_ref(png, mime=PNG_MIME, width=120, height=90, spacing_mm=None),
        make_ref(npy, mime=NPY_MIME, width=values.shape[1], height=values.shape[0], spacing_mm=spacing, modality="CT"),
    )
    for data in (png, npy):
        blobs.put(data)
    task = Task(task_id="t", family="f", question="q", images=images)
    return ImageShelf(task, renderer=ViewRenderer(blobs, view_size_px=view_size_px))


def call(shelf, name, **arguments):
    output = load_tool(name).run(arguments, shelf.context(CallKey()))
    return output, shelf.add(output.images)


def test_window_level_gives_the_formula():
    shelf = make_shelf(view_size_px=84)
    for name, (center, width) in PRESETS.items():
        _, (image,) = call(shelf, "window_level", preset=name, image=1)
        share = np.clip((VALUES.astype(np.float64) - (center - width / 2)) / width, 0, 1)
        grey = np.floor(share * 255 + 0.5)
        assert np.abs(image.pixels[..., 0].astype(float) - grey).max() <= 1.0, name
        assert (image.pixels[..., 0] == image.pixels[..., 2]).all()
        assert (image.pixels[..., 0] == grey).mean() > 0.999
    _, (own,) = call(shelf, "window_level", center=40, width=400, image=1)
    _, (preset,) = call(shelf, "window_level", preset="soft_tissue", image=1)
    assert np.array_equal(own.pixels, preset.pixels)
    assert np.array_equal(shelf.first_view(1).pixels, preset.pixels)


def test_window_level_reads_stored_values_again_after_a_zoom():
    shelf = make_shelf(view_size_px=28)
    call(shelf, "zoom", bbox=[0, 0, 333, 333], image=1)
    _, (bone_of_part,) = call(shelf, "window_level", preset="bone", image=2)
    call(shelf, "window_level", preset="bone", image=1)
    _, (part_of_bone,) = call(shelf, "zoom", bbox=[0, 0, 333, 333], image=4)
    assert shelf.records[3].view.window == Window(center=400, width=1800)
    box = shelf.records[3].to_source.box((0, 0, bone_of_part.ref.width, bone_of_part.ref.height))
    assert box == (0.0, 0.0, 28.0, 20.0)
    assert np.array_equal(bone_of_part.pixels, part_of_bone.pixels)


def test_window_level_on_eight_bits_changes_nothing_and_says_so():
    shelf = make_shelf()
    output, (image,) = call(shelf, "window_level", preset="bone")
    assert "8 bits" in output.text
    assert np.array_equal(image.pixels, shelf.first_view(0).pixels)


@pytest.mark.parametrize("arguments", [{}, {"preset": "bone", "width": 3}, {"center": 3}, {"width": 3}])
def test_window_level_needs_one_way_to_say_it(arguments):
    with pytest.raises(ToolArgumentError, match="preset, or center and width"):
        call(make_shelf(), "window_level", **arguments)


def test_zoom_cuts_the_source_at_full_resolution():
    shelf = make_shelf(view_size_px=30)
    output, (image,) = call(shelf, "zoom", bbox=[250, 0, 500, 333])
    assert output.text == ""
    assert np.array_equal(image.pixels, GREY[0:30, 30:60])
    assert shelf.records[2].to_source.point(0, 0) == (30.0, 0.0)


def test_zoom_of_everything_is_the_first_view():
    shelf = make_shelf()
    _, (image,) = call(shelf, "zoom", bbox=[0, 0, 1000, 1000])
    assert image.ref == shelf.first_view(0).ref


def test_a_box_without_a_pixel_and_a_line_are_refused():
    shelf = make_shelf()
    for bbox in ([500, 0, 500, 100], [600, 0, 500, 100], [500, 500, 502, 502], [0, 500, 1000, 503]):
        with pytest.raises(ToolArgumentError):
            call(shelf, "zoom", bbox=bbox)
    with pytest.raises(ToolArgumentError, match="no image 9; images are 0 to 1"):
        call(shelf, "zoom", bbox=[0, 0, 1, 1], image=9)


SIDES = st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True).map(sorted)
BOXES = st.builds(lambda across, down: [across[0], down[0], across[1], down[1]], SIDES, SIDES)


@given(
    outer=BOXES,
    inner=BOXES,
    operation=st.sampled_from([None, "flip_horizontal", "flip_vertical", "rotate_90", "rotate_180", "rotate_270"]),
)
@settings(max_examples=60, deadline=None)
def test_nested_zooms_map_back_within_half_a_source_pixel(outer, inner, operation):
    shelf = make_shelf(view_size_px=33)
    index = 1
    for step, bbox in enumerate((outer, inner)):
        record = shelf.records[index]
        size = (record.ref.width, record.ref.height)
        asked = record.to_source.box([value * size[place % 2] / 1000 for place, value in enumerate(bbox)])
        try:
            call(shelf, "zoom", bbox=bbox, image=index)
        except ToolArgumentError:
            return
        index = len(shelf.records) - 1
        made = shelf.records[index]
        shown = made.to_source.box((0, 0, made.ref.width, made.ref.height))
        assert np.abs(np.subtract(shown, asked)).max() <= 0.5 + 1e-9
        if operation and step == 0:
            call(shelf, "flip_rotate", operation=operation, image=index)
            index = len(shelf.records) - 1


@given(
    is_flipped=st.booleans(),
    turns=st.integers(0, 3),
    box=st.sampled_from([None, (3.0, 5.0, 40.0, 30.0), (0.0, 0.0, 28.0, 28.0)]),
)
@settings(max_examples=60, deadline=None)
def test_the_map_to_the_source_finds_the_very_pixel(is_flipped, turns, box):
    source = np.arange(60 * 84, dtype=np.int64).reshape(60, 84)
    marks = np.stack([source % 251, source // 251, source % 13], axis=2).astype(np.uint8)
    size = 84 if box is None else int(max(box[2] - box[0], box[3] - box[1]))
    view = View(source_index=0, box=box, orientation=Orientation(is_flipped=is_flipped, quarter_turns=turns))
    pixels, to_source = draw_view(marks, view, view_size_px=size)
    for row in range(0, pixels.shape[0], 7):
        for column in range(0, pixels.shape[1], 5):
            x, y = to_source.point(column + 0.5, row + 0.5)
            assert np.array_equal(pixels[row, column], marks[int(y), int(x)])


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("flip_horizontal", lambda view: view[:, ::-1]),
        ("flip_vertical", lambda view: view[::-1]),
        ("rotate_90", lambda view: np.rot90(view, -1)),
        ("rotate_180", lambda view: np.rot90(view, 2)),
        ("rotate_270", lambda view: np.rot90(view, 1)),
    ],
)
def test_flip_rotate_does_what_it_says_and_undoes_itself(operation, expected):
    shelf = make_shelf()
    _, (once,) = call(shelf, "flip_rotate", operation=operation)
    assert np.array_equal(once.pixels, expected(shelf.first_view(0).pixels))
    back = {"rotate_90": "rotate_270", "rotate_270": "rotate_90"}.get(operation, operation)
    _, (twice,) = call(shelf, "flip_rotate", operation=back, image=2)
    assert twice.ref == shelf.first_view(0).ref
    assert shelf.records[3].view == shelf.records[0].view


def test_every_pair_of_turns_equals_the_pair_of_arrays():
    operations = ["flip_horizontal", "flip_vertical", "rotate_90", "rotate_180", "rotate_270"]
    for first in operations:
        for second in operations:
            shelf = make_shelf()
            call(shelf, "flip_rotate", operation=first)
            _, (chained,) = call(shelf, "flip_rotate", operation=second, image=2)
            other = make_shelf()
            view = call(other, "flip_rotate", operation=first)[1][0]
            index = len(other.records)
            other.add([Picture(pixels=view.pixels, parent=2)])
            _, (painted,) = call(other, "flip_rotate", operation=second, image=index)
            assert np.array_equal(chained.pixels, painted.pixels), (first, second)


def test_measure_uses_row_and_column_spacing_and_derived_images_agree():
    shelf = make_shelf(view_size_px=28)
    horizontal, _ = call(shelf, "measure", points=[[0, 500], [1000, 500]], image=1)
    vertical, _ = call(shelf, "measure", points=[[10, 0], [10, 60]], unit="pixels", image=1)
    assert horizontal.text == "21.0 mm"
    assert vertical.text == "30.0 mm"
    call(shelf, "zoom", bbox=[0, 0, 333, 333], image=1)
    call(shelf, "flip_rotate", operation="rotate_90", image=2)
    turned, _ = call(shelf, "measure", points=[[0, 0], [0, 1000]], image=3)
    assert turned.text == "7.0 mm"
    assert shelf.records[3].ref.spacing_mm == pytest.approx((0.25, 0.5))


def test_measure_refuses_without_spacing_and_outside():
    with pytest.raises(ToolArgumentError, match="spacing"):
        call(make_shelf(), "measure", points=[[0, 0], [10, 10]])
    with pytest.raises(ToolArgumentError, match="outside"):
        call(make_shelf(), "measure", points=[[0, 0], [85, 10]], unit="pixels", image=1)
    with pytest.raises(ToolArgumentError, match="outside"):
        call(make_shelf(), "measure", points=[[0, 0], [1001, 10]], image=1)


def test_painted_pictures_are_zoomed_and_turned_by_their_own_pixels():
    shelf = make_shelf(view_size_px=60)
    paint = RNG.integers(0, 256, size=(45, 60), dtype=np.uint8)
    shelf.add([Picture(pixels=paint, parent=0)])
    _, (part,) = call(shelf, "zoom", bbox=[0, 0, 500, 1000], image=2)
    assert shelf.records[3].to_source.box((0, 0, part.ref.width, part.ref.height)) == pytest.approx((0, 0, 60, 90))
    _, (turned,) = call(shelf, "flip_rotate", operation="flip_vertical", image=2)
    assert np.array_equal(turned.pixels[..., 0], paint[::-1])
    assert shelf.records[4].to_source.point(0, 0) == (0.0, 90.0)
    with pytest.raises(ToolArgumentError, match="drawn by a tool"):
        call(shelf, "window_level", preset="bone", image=2)


def test_large_pictures_shrink_to_a_view_and_keep_their_place():
    shelf = make_shelf(view_size_px=30)
    shelf.add([Picture(pixels=np.zeros((90, 120, 3), np.uint8), parent=0)])
    assert (shelf.records[2].ref.width, shelf.records[2].ref.height) == (30, 22)
    assert shelf.records[2].to_source.point(30, 22) == pytest.approx((120, 90))


def test_nothing_is_indexed_when_one_image_of_a_result_is_bad():
    shelf = make_shelf()
    with pytest.raises(ToolError):
        shelf.add([View(source_index=0), Picture(pixels=np.zeros((2, 2), np.uint8), parent=9)])
    assert len(shelf.records) == 2


def test_the_same_view_is_drawn_once_and_the_caches_stay_small():
    shelf = make_shelf()
    first, second = shelf.first_view(1), shelf.first_view(1)
    assert first is second
    cache = SizedCache(100, size_of=len)
    for number in range(50):
        cache.put(number, b"x" * 30)
    assert cache.size_bytes == 90
    assert cache.get(0) is None
    assert cache.get(49) is not None


def test_a_ref_that_lies_about_its_size_is_refused():
    shelf = make_shelf()
    liar = shelf.records[0].ref
    blobs = MemoryBlobCache()
    blobs.put(shelf.load(liar.digest))
    wrong = make_ref(shelf.load(liar.digest), mime=PNG_MIME, width=1200, height=90)
    task = Task(task_id="t", family="f", question="q", images=(wrong,))
    with pytest.raises(ImageError, match="1200 x 90"):
        ImageShelf(task, renderer=ViewRenderer(blobs, view_size_px=30)).first_view(0)
