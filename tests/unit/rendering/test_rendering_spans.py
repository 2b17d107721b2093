"""The two forms of a stream: collapse and expand are each other's inverse."""

from __future__ import annotations

import numpy as np
import pytest
from fuzz_cases import fuzz
from hypothesis import given
from hypothesis import strategies as st

from medvista_ray.errors import RenderError
from medvista_ray.rendering.spans import check_stream, collapse, expand
from medvista_ray.types.trajectories import ImageSpan

IMAGE = 7
texts = st.lists(st.integers(0, 6) | st.integers(8, 20), max_size=6)
pieces = st.lists(st.tuples(texts, st.integers(1, 9)), max_size=6)


@fuzz
@given(pieces=pieces, tail=texts)
def test_collapse_and_expand_are_inverse(pieces, tail):
    collapsed, expanded, spans = [], [], []
    for index, (text, length) in enumerate(pieces):
        collapsed += [*text, IMAGE]
        spans.append(ImageSpan(digest=str(index), offset=len(expanded) + len(text), length=length))
        expanded += [*text, *[IMAGE] * length]
    collapsed, expanded = (np.array([*ids, *tail], np.int32) for ids in (collapsed, expanded))
    check_stream(expanded, spans, image_token_id=IMAGE)
    assert collapse(expanded, spans).tolist() == collapsed.tolist()
    images = [(span.digest, span.length) for span in spans]
    back, back_spans = expand(collapsed, images, image_token_id=IMAGE)
    assert back.tolist() == expanded.tolist()
    assert back.dtype == np.int32
    assert back_spans == tuple(spans)


@pytest.mark.parametrize(("offset", "length"), [(-1, 2), (0, 0), (3, 2), (9, 1)])
def test_a_span_outside_of_the_stream_is_refused(offset, length):
    with pytest.raises(RenderError, match="outside of 4 tokens"):
        collapse(np.zeros(4, np.int32), [ImageSpan(digest="d", offset=offset, length=length)])


def test_every_placeholder_has_its_image():
    ids = np.array([1, IMAGE, 2, IMAGE], np.int32)
    for images in ([], [("a", 2)], [("a", 1), ("b", 1), ("c", 1)]):
        with pytest.raises(RenderError, match="2 image placeholders for"):
            expand(ids, images, image_token_id=IMAGE)


@pytest.mark.parametrize("spans", [[], [(1, 1)], [(1, 3)], [(0, 2)], [(1, 2), (4, 1)]])
def test_spans_and_placeholders_must_agree(spans):
    ids = np.array([1, IMAGE, IMAGE, 2, 3], np.int32)
    check_stream(ids, [ImageSpan(digest="d", offset=1, length=2)], image_token_id=IMAGE)
    with pytest.raises(RenderError, match="2 image tokens"):
        check_stream(
            ids, [ImageSpan(digest="d", offset=offset, length=length) for offset, length in spans], image_token_id=IMAGE
        )
