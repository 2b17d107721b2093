"""The indexed images of one episode: the sources of its task, then every image that a tool made.

Built from `Task` alone. Keeps the encoded bytes for the length of the episode, so that no eviction elsewhere can break
a later call. Knows no messages and no rewards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medvista_ray.errors import ToolError
from medvista_ray.images.codec import digest_of, encode_npy, encode_png, make_ref
from medvista_ray.images.geometry import Transform, downscale, mask_to_source
from medvista_ray.images.volumes import cut_slice, decode_volume, num_slices
from medvista_ray.tools.base import CallKey, ImageRecord, Picture, Slice, SlicePlace, ToolContext
from medvista_ray.tools.renderer import RenderedImage, ViewRenderer
from medvista_ray.tools.views import View, check_aspect_ratio, default_window
from medvista_ray.types.messages import NPY_MIME, HeaderValue, ImageRef, Task, VolumeRef


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Made:
    """An image before it is indexed: what is known of it, what is shown, and the bytes that later calls need."""

    record: ImageRecord
    shown: RenderedImage
    blobs: Mapping[str, bytes]


class ImageShelf:
    """Indexed images of one episode."""

    def __init__(self, task: Task, *, renderer: ViewRenderer) -> None:
        self._renderer = renderer
        self._bytes = {digest: renderer.blobs.get(digest) for digest in task.digests}
        self._records: list[ImageRecord] = []
        self._volumes = tuple(task.volumes)
        for ref in task.images:
            self._records.append(_source_record(len(self._records), ref, header=task.headers.get(ref.digest, {})))
        for volume in task.volumes:
            self._add_middle_slice(volume, header=task.headers.get(volume.digest, {}))
        self._num_sources = len(self._records)

    @property
    def records(self) -> tuple[ImageRecord, ...]:
        """Return what is known of each indexed image."""
        return tuple(self._records)

    @property
    def num_sources(self) -> int:
        """Count the images that the task begins with: its images, and one slice of each of its volumes."""
        return self._num_sources

    def load(self, digest: str) -> bytes:
        """Return the encoded bytes of an indexed image, of a mask, or of a volume."""
        return self._bytes[digest]

    def context(self, key: CallKey) -> ToolContext:
        """Return what a call may look at."""
        return ToolContext(self.records, load=self.load, key=key)

    def first_view(self, index: int) -> RenderedImage:
        """Draw a source as the policy first sees it: all of it, upright, through the default window."""
        view = self._records[index].view
        assert view is not None, "a source always has a view"
        return self._renderer.render(self._records[index].source, view, load=self.load)

    def add(self, images: Sequence[View | Picture | Slice]) -> tuple[RenderedImage, ...]:
        """Index the images that a tool made, all of them or none; `ToolError` says what is wrong with them."""
        all_made = [self._make(image, index=len(self._records) + place) for place, image in enumerate(images)]
        for made in all_made:
            self._records.append(made.record)
            self._bytes.update(made.blobs)
        return tuple(made.shown for made in all_made)

    def _add_middle_slice(self, volume: VolumeRef, *, header: Mapping[str, HeaderValue]) -> None:
        index = num_slices(volume.shape, "axial") // 2
        values = decode_volume(self._bytes[volume.digest])
        if values.shape != volume.shape:
            raise ToolError(f"volume {volume.digest[:12]} has shape {values.shape}, its reference says {volume.shape}")
        film = cut_slice(values, volume.spacing_mm, plane="axial", index=index)
        place = SlicePlace(volume=volume, plane="axial", index=index)
        ref, data = _encode_slice(Slice(values=film.values, spacing_mm=film.spacing_mm, place=place))
        self._bytes[ref.digest] = data
        self._records.append(_source_record(len(self._records), ref, place=place, header=header))

    def _make(self, image: View | Picture | Slice, *, index: int) -> _Made:
        if isinstance(image, View):
            return self._make_view(image, index=index)
        return self._make_slice(image, index=index) if isinstance(image, Slice) else self._paint(image, index=index)

    def _make_view(self, view: View, *, index: int) -> _Made:
        if not 0 <= view.source_index < len(self._records):
            raise ToolError(f"a view shows a source image, not number {view.source_index}")
        parent = self._records[view.source_index]
        shown = self._renderer.render(parent.source, view, load=self.load)
        record = replace(parent, index=index, ref=shown.ref, view=view, to_source=shown.to_source, mask_digest=None)
        return _Made(record=record, shown=shown, blobs={shown.ref.digest: shown.data})

    def _make_slice(self, image: Slice, *, index: int) -> _Made:
        if image.place.volume not in self._volumes:  # later calls would look for its bytes
            raise ToolError(f"a slice is of a volume of the task, not of {image.place.volume.digest[:12]}")
        ref, data = _encode_slice(image)
        header = next(
            (
                record.header
                for record in self._records
                if record.place is not None and record.place.volume == image.place.volume
            ),
            {},
        )
        record = _source_record(index, ref, place=image.place, header=header)
        assert record.view is not None, "a source always has a view"
        shown = self._renderer.render(ref, record.view, load=lambda _: data)
        return _Made(record=record, shown=shown, blobs={ref.digest: data, shown.ref.digest: shown.data})

    def _paint(self, image: Picture, *, index: int) -> _Made:
        if not 0 <= image.parent < len(self._records):
            raise ToolError(f"the parent of a picture is an image from 0 to {len(self._records) - 1}")
        parent = self._records[image.parent]
        pixels, scale = self._fit(image.pixels)
        to_parent = image.to_parent or _same_frame(image.pixels, parent)
        to_source = parent.to_source.after(to_parent).after(scale)
        shown = self._renderer.render_picture(pixels, source=parent.source, to_source=to_source)
        blobs = {shown.ref.digest: shown.data}
        mask_digest = None
        if image.mask is not None:
            data = _encode_mask(image.mask, parent.to_source.after(to_parent), source=parent.source)
            mask_digest = digest_of(data)
            blobs[mask_digest] = data
        record = replace(
            parent, index=index, ref=shown.ref, view=None, to_source=shown.to_source, mask_digest=mask_digest
        )
        return _Made(record=record, shown=shown, blobs=blobs)

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


def _source_record(
    index: int, ref: ImageRef, *, place: SlicePlace | None = None, header: Mapping[str, HeaderValue]
) -> ImageRecord:
    return ImageRecord(
        index=index,
        ref=ref,
        source=ref,
        view=View(source_index=index, window=default_window(ref)),
        to_source=Transform(),
        place=place,
        header=header,
    )


def _encode_slice(image: Slice) -> tuple[ImageRef, bytes]:
    if image.values.ndim != 2 or image.values.size == 0:
        raise ToolError(f"a slice has shape [H, W], not {list(image.values.shape)}")
    data = encode_npy(image.values)
    height, width = image.values.shape
    ref = make_ref(
        data,
        mime=NPY_MIME,
        width=width,
        height=height,
        spacing_mm=image.spacing_mm,
        modality=image.place.volume.modality,
    )
    return ref, data


def _encode_mask(mask: np.ndarray, to_source: Transform, *, source: ImageRef) -> bytes:
    """Encode a mask of a picture at the full resolution of its source, where later calls and rewards read it."""
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.ndim != 2 or mask.size == 0:
        raise ToolError("a mask is a non-empty bool array [H, W]")
    at_source = mask_to_source(mask, to_source, width=source.width, height=source.height)
    return encode_png(at_source.astype(np.uint8) * 255)
