import sys
from pathlib import Path

import pytest

from medvista_ray.errors import MissingPackageError
from medvista_ray.tools.onnx_session import num_threads, open_session
from medvista_ray.tools.read_text import Line, in_reading_order, make_reader


def line(text, x, y, height=10):
    return Line(text=text, box=(x, y, x + 30, y + height))


def test_rows_from_top_to_bottom_and_lines_of_a_row_from_left_to_right():
    lines = [line("c", 5, 31), line("b", 60, 0), line("d", 70, 28), line("a", 5, 4)]
    assert [each.text for each in in_reading_order(lines)] == ["a", "b", "c", "d"]
    steps = [
        line("third", 0, 16),
        line("second", 40, 8),
        line("first", 80, 0),
    ]  # each a little lower: rows of their own
    assert [each.text for each in in_reading_order(steps)] == ["first", "second", "third"]
    assert in_reading_order([]) == []


def test_a_missing_library_names_the_extra_that_brings_it(monkeypatch):
    for name in ("cv2", "rapidocr", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it raises ModuleNotFoundError
    with pytest.raises(MissingPackageError, match=r"pip install 'medvista-ray\[ocr\]'"):
        make_reader()
    with pytest.raises(MissingPackageError, match=r"pip install 'medvista-ray\[segment\]'"):
        open_session(Path("model.onnx"), extra="segment")


@pytest.mark.parametrize(("value", "threads"), [("3", 3), ("0", 1), ("", 1), ("many", 1)])
def test_a_process_uses_the_threads_it_was_given(monkeypatch, value, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert num_threads() == threads
