"""`read_text` on real ultrasound frames: the strings that a person reads there, without a network."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pydicom.data
import pytest
from PIL import Image, ImageDraw

from medvista_ray.images.codec import encode_png, make_ref
from medvista_ray.images.files import read_image_file
from medvista_ray.images.store import MemoryBlobCache
from medvista_ray.tools.base import CallKey, ServiceCall
from medvista_ray.tools.read_text import MAX_SIDE_PX, ReadText
from medvista_ray.tools.renderer import ViewRenderer
from medvista_ray.tools.runner import make_tool_runner
from medvista_ray.tools.shelf import ImageShelf
from medvista_ray.types.messages import PNG_MIME, Task
from medvista_ray.types.tool_calls import ToolCall

KEY = CallKey()
FRAME = "OBXXXX1A.dcm"  # obstetric ultrasound with a caliper, in pydicom-data
STRINGS = (
    "PHILIPS",
    "Philips Healthcare",
    "Gen OB",
    "C5-1",
    "28Hz",
    "11cm",
    "2D",
    "HGen",
    "Gn 60",
    "MI 1.1",
    "1.06 cm",
)


@pytest.fixture(scope="module")
def reader():
    tool = ReadText()
    tool.warm_up()
    return tool


def make_shelf(data, *, mime, width, height):
    blobs = MemoryBlobCache()
    blobs.put(data)
    ref = make_ref(data, mime=mime, width=width, height=height)
    task = Task(task_id="t", family="f", question="q", images=(ref,))
    return ImageShelf(task, renderer=ViewRenderer(blobs, view_size_px=1024))


@pytest.fixture(scope="module")
def frame():
    file = read_image_file(Path(pydicom.data.get_testdata_file(FRAME, download=False)))
    return make_shelf(file.data, mime=file.mime, width=file.width, height=file.height)


def lines_of(text):
    return {
        string: [int(value) for value in box.split(",")]
        for string, box in re.findall(r'^"(.*)" \[([0-9, ]+)\]$', text, flags=re.MULTILINE)
    }


def test_the_strings_of_an_ultrasound_frame_with_their_places(reader, frame):
    lines = lines_of(reader.run({}, frame.context(KEY)).text)
    missing = [string for string in STRINGS if string not in lines]
    print(f"{FRAME}: {len(STRINGS) - len(missing)} of {len(STRINGS)} strings, {len(lines)} lines")
    assert not missing
    x0, y0, x1, y1 = lines["1.06 cm"]  # the burned-in result of the caliper, right of the middle of the left half
    assert 250 < x0 < x1 < 420
    assert 100 < y0 < y1 < 200
    assert lines["PHILIPS"][0] < lines["Philips Healthcare"][0]


def test_a_box_gives_the_lines_in_it_and_an_image_is_read_once(reader, frame):
    everything = lines_of(reader.run({}, frame.context(KEY)).text)
    read, reader._reader = reader._reader, None  # what has been read is not read again
    try:
        part = lines_of(reader.run({"bbox": [140, 120, 420, 190]}, frame.context(KEY)).text)
        pixels = lines_of(reader.run({"bbox": [112, 72, 336, 114], "unit": "pixels"}, frame.context(KEY)).text)
    finally:
        reader._reader = read
    assert part == pixels == {text: everything[text] for text in ("+ Cist Mag", "1.06 cm")}


def test_an_image_without_text_has_none(reader):
    data = encode_png(np.full((64, 64), 90, np.uint8))
    shelf = make_shelf(data, mime=PNG_MIME, width=64, height=64)
    assert reader.run({}, shelf.context(KEY)).text == "no text found"
    results = reader.run_batch(
        [ServiceCall(arguments={"image": index}, context=shelf.context(KEY)) for index in (0, 5)]
    )
    assert results[0].text == "no text found"
    assert "no image 5" in str(results[1])


def test_the_service_reads_in_its_own_process():
    picture = Image.new("L", (400, 120), 20)
    ImageDraw.Draw(picture).text((30, 30), "LEFT 42 mm", fill=235, font_size=44)
    data = encode_png(np.array(picture))
    runner = make_tool_runner(["read_text"], timeout_s=60)
    try:
        shelf = make_shelf(data, mime=PNG_MIME, width=400, height=120)
        outcome = runner.run(ToolCall(name="read_text"), shelf=shelf, key=KEY)
    finally:
        runner.close()
    assert outcome.failure is None, outcome.text
    assert " ".join(lines_of(outcome.text)) == "LEFT 42 mm"


def test_an_image_that_is_shrunk_first_has_its_strings_in_the_same_places(reader, frame):
    """Of 1.5 times the largest side: places in thousandths of a box that was not scaled back would be 2/3 of these."""
    small = lines_of(reader.run({}, frame.context(KEY)).text)
    pixels = np.kron(frame.context(KEY).image(0).pixels(), np.ones((3, 3, 1), np.uint8))
    assert max(pixels.shape) > MAX_SIDE_PX
    shelf = make_shelf(encode_png(pixels), mime=PNG_MIME, width=pixels.shape[1], height=pixels.shape[0])
    large = lines_of(reader.run({}, shelf.context(KEY)).text)
    both = [string for string in STRINGS if string in small and string in large]
    print(f"{len(both)} of {len(STRINGS)} strings in both sizes")
    assert len(both) >= 8
    for string in both:
        assert large[string] == pytest.approx(small[string], abs=10), string
    part = lines_of(reader.run({"bbox": [140, 120, 420, 190]}, shelf.context(KEY)).text)
    assert "1.06 cm" in part


def test_no_network_is_needed():
    """No socket is opened or name looked up; where the system allows it, the process has no network either."""
    script = textwrap.dedent(
        """
        import sys
        import numpy as np
        from medvista_ray.tools.read_text import make_reader, read_lines

        def refuse(event, arguments):
            if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
                raise SystemExit(f"{event} {arguments}")

        sys.addaudithook(refuse)
        print(read_lines(make_reader(), np.zeros((40, 40, 3), np.uint8)))
        """
    )
    apart = ["unshare", "--net", "--map-root-user"] if shutil.which("unshare") is not None else []
    if apart and subprocess.run([*apart, "true"], capture_output=True, check=False).returncode != 0:
        apart = []
    command = [*apart, sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
