"""The indexed images of one episode: the sources of its task, then every image that a tool made.

Built from `Task` alone. Keeps the encoded bytes for the length of the episode, so that no eviction elsewhere can break
a later call. Knows no messages and no rewards.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medvista_ray.errors import ToolError
from medvista_ray.images.geometry import Transform, downscale
from medvista_ray.tools.base import CallKey, ImageRecord, Picture, ToolContext
from medvista_ray.tools.renderer import RenderedImage, ViewRenderer
from medvista_ray.tools.views import View, check_aspect_ratio, default_window
from medvista_ray.types.messages import Task


class ImageShelf:
    """Indexed images of one episode."""

    def __init__(self, task: Task, *, renderer: ViewRenderer) -> None:
        self._renderer = renderer
        self._bytes = {ref.digest: renderer.blobs.get(ref.digest) for ref in task.images}
        self._records = [
            ImageRecord(
                index=index,
                ref=ref,
                source=ref,
                view=View(source_index=index, window=default_window(ref)),
                to_source=Transform(),
            )
            for index, ref in enumerate(task.images)
        ]

    @property
    def records(self) -> tuple[ImageRecord, ...]:
        """Return what is known of each indexed image."""
        return tuple(self._records)

    def load(self, digest: str) -> bytes:
        """Return the encoded bytes of an indexed image."""
        return self._bytes[digest]

    def context(self, key: CallKey) -> ToolContext:
        """Return what a call may look at."""
        return ToolContext(self.records, load=self.load, key=key)

    def first_view(self, index: int) -> RenderedImage:
        """Draw a source as the policy first sees it: all of it, upright, through the default window."""
        view = self._records[index].view
        assert view is not None, "a source always has a view"
        return self._renderer.render(self._records[index].source, view, load=self.load)

    def add(self, images: Sequence[View | Picture]) -> tuple[RenderedImage, ...]:
        """Index the images that a tool made, all of them or none; `ToolError` says what is wrong with them."""
        made = [self._draw(image, index=len(self._records) + place) for place, image in enumerate(images)]
        for record, rendered in made:
            self._records.append(record)
            self._bytes[rendered.ref.digest] = rendered.data
        return tuple(rendered for _, rendered in made)

    def _draw(self, image: View | Picture, *, index: int) -> tuple[ImageRecord, RenderedImage]:
        if isinstance(image, View):
            rendered = self._draw_view(image)
            return _make_record(index, rendered, source_of=self._records[image.source_index], view=image), rendered
        if not 0 <= image.parent < len(self._records):
            raise ToolError(f"the parent of a picture is an image from 0 to {len(self._records) - 1}")
        parent = self._records[image.parent]
        pixels, scale = self._fit(image.pixels)
        to_parent = image.to_parent or _same_frame(image.pixels, parent)
        to_source = parent.to_source.after(to_parent).after(scale)
        rendered = self._renderer.render_picture(pixels, source=parent.source, to_source=to_source)
        return _make_record(index, rendered, source_of=parent, view=None), rendered

    def _draw_view(self, view: View) -> RenderedImage:
        if not 0 <= view.source_index < len(self._records):
            raise ToolError(f"a view shows a source image, not number {view.source_index}")
        return self._renderer.render(self._records[view.source_index].source, view, load=self.load)

    def _fit(self, pixels: np.ndarray) -> tuple[np.ndarray, Transform]:
        """Check painted pixels and shrink them to the size of a view."""
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.size == 0:
            raise ToolError("a picture is a non-empty uint8 array")
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
        if pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ToolError(f"a picture has shape [H, W] or [H, W, 3], not {list(pixels.shape)}")
        check_aspect_ratio(pixels.shape[1], pixels.shape[0])
        shrunk = np.array(downscale(pixels, self._renderer.view_size_px))
        scale_x, scale_y = pixels.shape[1] / shrunk.shape[1], pixels.shape[0] / shrunk.shape[0]
        return shrunk, Transform(coefficients=(scale_x, 0.0, 0.0, 0.0, scale_y, 0.0))


def _same_frame(pixels: np.ndarray, parent: ImageRecord) -> Transform:
    scale_x, scale_y = parent.ref.width / pixels.shape[1], parent.ref.height / pixels.shape[0]
    return Transform(coefficients=(scale_x, 0.0, 0.0, 0.0, scale_y, 0.0))


def _make_record(index: int, rendered: RenderedImage, *, source_of: ImageRecord, view: View | None) -> ImageRecord:
    return ImageRecord(index=index, ref=rendered.ref, source=source_of.source, view=view, to_source=rendered.to_source)
