"""`enhance`: scikit-image's filters for contrast, noise and vessels, on an image as it is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from medvista_ray.errors import ToolArgumentError
from medvista_ray.images.geometry import downscale
from medvista_ray.images.windowing import to_rgb
from medvista_ray.tools.base import IMAGE_INDEX, Picture, Tool, ToolContext, ToolCost, ToolOutput

MAX_SIDE_PX = 1024  # larger images are shrunk first: the result is shown no larger
_SIGMAS_PX = (1, 3, 5, 7, 9)  # widths of vessels


def _clahe(values: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
    from skimage.exposure import equalize_adapthist

    return np.asarray(equalize_adapthist(values, clip_limit=options.get("clip_limit", 0.01)))


def _gamma(values: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
    from skimage.exposure import adjust_gamma

    return np.asarray(adjust_gamma(values, gamma=options.get("gamma", 0.5)))


def _unsharp(values: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
    from skimage.filters import unsharp_mask

    radius, amount = options.get("radius", 2.0), options.get("amount", 1.0)
    return np.asarray(unsharp_mask(values, radius=radius, amount=amount, channel_axis=_channel_axis(values)))


def _denoise(values: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
    from skimage.restoration import denoise_tv_chambolle

    return np.asarray(
        denoise_tv_chambolle(values, weight=options.get("weight", 0.1), channel_axis=_channel_axis(values))
    )


def _vesselness(values: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
    """Return the ridge filter of Sato and others, scaled so that its largest answer is white."""
    from skimage.filters import sato

    grey = values if values.ndim == 2 else values.mean(axis=2)
    found = np.asarray(sato(grey, sigmas=_SIGMAS_PX, black_ridges=options.get("ridges", "dark") == "dark"))
    return found / max(float(found.max()), 1e-12)


# method -> its filter of float [H, W] or [H, W, 3] in 0..1, and the options that it knows
_METHODS: Mapping[str, tuple[Callable[[np.ndarray, Mapping[str, Any]], np.ndarray], frozenset[str]]] = MappingProxyType(
    {
        "clahe": (_clahe, frozenset({"clip_limit"})),
        "gamma": (_gamma, frozenset({"gamma"})),
        "unsharp": (_unsharp, frozenset({"radius", "amount"})),
        "denoise": (_denoise, frozenset({"weight"})),
        "vesselness": (_vesselness, frozenset({"ridges"})),
    }
)
_OPTIONS = frozenset().union(*(options for _, options in _METHODS.values()))


class Enhance(Tool):
    """Filter what is shown; the values of the source stay as they are."""

    name = "enhance"
    description = (
        "Show an image filtered: clahe (local contrast), gamma (below 1 brightens), unsharp (sharpens), denoise (total "
        "variation), vesselness (dark or bright lines)."
    )
    cost = ToolCost.POOLED
    parameters: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {
            "method": {"type": "string", "enum": list(_METHODS)},
            "clip_limit": {"type": "number", "minimum": 0.001, "maximum": 1},
            "gamma": {"type": "number", "minimum": 0.1, "maximum": 10},
            "radius": {"type": "number", "minimum": 0.5, "maximum": 50},
            "amount": {"type": "number", "minimum": 0.1, "maximum": 10},
            "weight": {"type": "number", "minimum": 0.001, "maximum": 10},
            "ridges": {"type": "string", "enum": ["dark", "bright"]},
            "image": dict(IMAGE_INDEX),
        },
        "required": ["method"],
        "additionalProperties": False,
    }

    def warm_up(self) -> None:
        """Import the library before the first deadline runs."""
        import skimage.exposure
        import skimage.filters
        import skimage.restoration  # noqa: F401

    def run(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutput:
        """Return the image filtered, in the same frame."""
        method = arguments["method"]
        function, known = _METHODS[method]
        if wrong := sorted((arguments.keys() & _OPTIONS) - known):
            raise ToolArgumentError(f"{method} has no {wrong[0]}; it has {', '.join(sorted(known))}")
        image = context.image(int(arguments.get("image", 0)))
        filtered = filter_pixels(image.pixels(), lambda values: function(values, arguments))
        return ToolOutput(images=(Picture(pixels=filtered, parent=image.index),))


def filter_pixels(pixels: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply a filter of 0..1 values to uint8 [H, W, 3]; an image of greys is filtered as one channel."""
    pixels = downscale(pixels, MAX_SIDE_PX)
    is_grey = bool((pixels == pixels[..., :1]).all())
    values = np.asarray(pixels[..., 0] if is_grey else pixels, np.float64) / 255
    filtered = (function(values).clip(0.0, 1.0) * 255 + 0.5).astype(np.uint8)
    return to_rgb(filtered) if filtered.ndim == 2 else filtered


def _channel_axis(values: np.ndarray) -> int | None:
    return None if values.ndim == 2 else 2  # written as -1, `unsharp_mask` of 0.26 filters the first rows only
