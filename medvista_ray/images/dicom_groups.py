"""The functional groups of enhanced multi-frame DICOM: what holds for one frame stands in them, not at the top.

PS3.3 C.7.6.16: an item of the shared sequence holds for every frame, one of the per-frame sequence for its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from medvista_ray.errors import ImageError
from medvista_ray.images.dicom_fields import numbers, texts

_SHARED, _PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
GROUP_KEYWORDS = (_SHARED, _PER_FRAME)
# Element -> the group that it stands in.
_GROUP_OF: Mapping[str, str] = MappingProxyType(
    {
        "PixelSpacing": "PixelMeasuresSequence",
        "ImageOrientationPatient": "PlaneOrientationSequence",
        "RescaleSlope": "PixelValueTransformationSequence",
        "RescaleIntercept": "PixelValueTransformationSequence",
    }
)


def frame_numbers(dataset: Any, keyword: str, *, frame: int) -> list[float]:
    """Return the numbers of an element for one frame: of its groups, else of the top level; see `numbers`."""
    for sequence, index in ((_PER_FRAME, frame), (_SHARED, 0)):
        for group in _items(_item(dataset, sequence, index), _GROUP_OF[keyword])[:1]:
            if keyword in group:
                return numbers(group, keyword)
    return numbers(dataset, keyword)


def frame_rescale(dataset: Any, *, frame: int) -> tuple[float, float] | None:
    """Return (slope, intercept) from the groups of one frame; None where they hold none, `ImageError` if no numbers."""
    for sequence, index in ((_PER_FRAME, frame), (_SHARED, 0)):
        for group in _items(_item(dataset, sequence, index), _GROUP_OF["RescaleSlope"])[:1]:
            slope, intercept = (numbers(group, keyword) for keyword in ("RescaleSlope", "RescaleIntercept"))
            if len(slope) != 1 or len(intercept) != 1:
                raise ImageError(f"the rescale of frame {frame} is no slope and intercept")
            return slope[0], intercept[0]
    return None


def has_frames(dataset: Any) -> bool:
    """Return whether a file holds several frames, or says things frame by frame."""
    return texts(dataset, "NumberOfFrames") not in ([], [""], ["1"]) or any(key in dataset for key in GROUP_KEYWORDS)


def _item(dataset: Any, keyword: str, index: int) -> Any:
    items = _items(dataset, keyword)
    return items[index] if index < len(items) else None


def _items(dataset: Any, keyword: str) -> list[Any]:
    from pydicom.sequence import Sequence

    items = None if dataset is None else dataset.get(keyword)
    return list(items) if isinstance(items, Sequence) else []
