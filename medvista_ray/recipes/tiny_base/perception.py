"""Perception items over training-split images: what a model that can already see would know.

No tool call and no think/answer protocol is in here: a question, and a bare answer. Beside the text, an item carries
what each visual token shows (ring, letter), the dense labels without which so small a model does not learn to see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from medvista_ray.data.families import measure, structure, window, zoom
from medvista_ray.data.letters import LETTERS
from medvista_ray.data.manifest import Split
from medvista_ray.data.scene import FULL_PX, VIEW_PX, load_pool
from medvista_ray.images.geometry import box_from_thousandths, crop_and_scale
from medvista_ray.images.windowing import PRESETS
from medvista_ray.recipes.tiny_base.vocabulary import NONE_ANSWER, REPEAT, WHERE_QUESTION

GRID = 3  # visual tokens along one side of a view
NUM_TOKENS = GRID * GRID
_EDGES = (0, 333, 667, 1000)
NOTHING = NUM_TOKENS  # a label: the image surely shows none
UNKNOWN = -1  # a label: do not train on it


def cell_box(cell: int) -> tuple[int, int, int, int]:
    """Return the ninth of an image as a box in 0-1000 coordinates."""
    row, column = divmod(cell, GRID)
    return _EDGES[column], _EDGES[row], _EDGES[column + 1], _EDGES[row + 1]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DenseView:
    """One view with what its visual tokens show."""

    pixels: np.ndarray  # uint8 [84, 84, 3]
    ring: int = UNKNOWN  # token index, NOTHING or UNKNOWN
    letter_at: int = UNKNOWN  # token index, NOTHING or UNKNOWN
    letter: int = 0  # index into LETTERS, where letter_at is a token


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exchange:
    """Views and a question, and the bare answer."""

    views: tuple[DenseView, ...]
    question: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PerceptionItem:
    """One conversation of one or two exchanges."""

    kind: str
    exchanges: tuple[Exchange, ...] = field(default=())

    @property
    def views(self) -> list[DenseView]:
        """Return all views in order."""
        return [view for exchange in self.exchanges for view in exchange.views]


def _token_at(x: float, y: float) -> int:
    return int(y) * GRID // VIEW_PX * GRID + int(x) * GRID // VIEW_PX


def _thumbnail(scene: zoom.ZoomScene) -> DenseView:
    return DenseView(pixels=scene.view, ring=scene.cell, letter_at=NOTHING)


def _crop(scene: zoom.ZoomScene, cell: int) -> DenseView:
    box = box_from_thousandths(cell_box(cell), FULL_PX, FULL_PX)
    pixels, transform = crop_and_scale(scene.pixels, box, VIEW_PX)
    if cell != scene.cell:
        return DenseView(pixels=pixels, letter_at=NOTHING)
    x, y = transform.inverse_point(*scene.center)
    token = _token_at(x, y)
    return DenseView(pixels=pixels, ring=token, letter_at=token, letter=LETTERS.index(scene.letter))


def _windowed(scene: window.WindowScene, preset: str) -> DenseView:
    pixels = scene.view(preset)
    if preset != scene.kind:
        return DenseView(pixels=pixels, ring=NOTHING, letter_at=NOTHING)
    return DenseView(
        pixels=pixels, ring=NOTHING, letter_at=_token_at(*scene.center), letter=LETTERS.index(scene.letter)
    )


def _box_text(cell: int) -> str:
    return "[" + ",".join(str(edge) for edge in cell_box(cell)) + "]"


class PerceptionSource:
    """Draws perception items of one split by kind; `MIXTURE` is the training mixture."""

    MIXTURE: dict[str, float] = {  # noqa: RUF012 - a constant table
        "where": 0.17,
        "crop": 0.09,
        "crop_after_view": 0.08,
        "crop_none": 0.06,
        "two_turns": 0.08,
        "window": 0.14,
        "window_after_view": 0.12,
        "window_none": 0.05,
        "structure": 0.14,
        "repeat": 0.07,
    }
    DENSE_MIXTURE: dict[str, float] = {  # noqa: RUF012
        "where": 0.35,
        "crop": 0.25,
        "window": 0.22,
        "crop_none": 0.05,
        "window_none": 0.03,
        "two_turns": 0.10,
    }

    def __init__(self, source: str, split: Split) -> None:
        self._zoom = load_pool(source, split, "zoom")
        self._window = load_pool(source, split, "window", keep=lambda image: image.values is not None)
        self._structure = structure.make_structure_pools(load_pool(source, split, "structure"))
        self._draw: dict[str, Callable[[np.random.Generator], tuple[Exchange, ...]]] = {
            "where": self._where,
            "crop": self._crop_alone,
            "crop_after_view": self._crop_after_view,
            "crop_none": self._crop_none,
            "two_turns": self._two_turns,
            "window": self._window_alone,
            "window_after_view": self._window_after_view,
            "window_none": self._window_none,
            "structure": lambda rng: self._structure_of(rng, None),
            "plane": lambda rng: self._structure_of(rng, "plane"),
            "modality": lambda rng: self._structure_of(rng, "modality"),
            "quadrant": lambda rng: self._structure_of(rng, "quadrant"),
            "repeat": self._repeat,
        }

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return every kind of item."""
        return tuple(self._draw)

    def draw(self, rng: np.random.Generator, kind: str) -> PerceptionItem:
        """Draw one item of a kind."""
        return PerceptionItem(kind=kind, exchanges=self._draw[kind](rng))

    def draw_mixture(self, rng: np.random.Generator, count: int, mixture: dict[str, float]) -> list[PerceptionItem]:
        """Draw `count` items whose kinds follow a mixture."""
        kinds, shares = list(mixture), np.array(list(mixture.values()))
        return [self.draw(rng, kinds[i]) for i in rng.choice(len(kinds), count, p=shares / shares.sum())]

    def _where(self, rng: np.random.Generator) -> tuple[Exchange, ...]:
        scene = zoom.draw_zoom_scene(rng, self._zoom)
        return (Exchange(views=(_thumbnail(scene),), question=WHERE_QUESTION, answer=_box_text(scene.cell)),)

    def _crop_alone(self, rng: np.random.Generator) -> tuple[Exchange, ...]:
        scene = zoom.draw_zoom_scene(rng, self._zoom)
        return (Exchange(views=(_crop(scene, scene.cell),), question=zoom.QUESTION, answer=scene.letter),)

    def _crop_after_view(self, rng: np.random.Generator) -> tuple[Exchange, ...]:
        scene = zoom.draw_zoom_scene(rng, self._zoom)
        views = (_thumbnail(scene), _crop(scene, scene.cell))
        return (Exchange(views=views, question=zoom.QUESTION, answer=scene.letter),)

    def _crop_none(self, rng: np.random.Generator) -> tuple[Exchange, ...]:
        scene = zoom.draw_zoom_scene(rng, self._zoom)
        others = [cell for cell in range(NUM_TOKENS) if cell != scene.cell]
        crop = _crop(scene, others[int(rng.integers(len(others)))])
        views = (_thumbnail(scene), crop) if rng.random() < 0.5 else (crop,)
        return (Exchange(views=views, question=zoom.QUESTION, answer=NONE_ANSWER),)

    def _two_turns(self, rng: np.random.Generator) -> tuple[Exchange, ...]:
        scene = zoom.draw_zoom_scene(rng, self._zoom)
        return (
            Exchange(views=(_thumbnail(scene),), question=WHERE_QUESTION, answer=_box_text(scene.cell)),
            Exchange(views=(_crop(scene, scene.cell),), question=zoom.QUESTION, answer=scene.letter),
        )

    def _window_alone(self, rng: np.random.Generator) -> tuple[Exchange, ...]:
        scene = window.draw_window_scene(rng, self._window)
        question = window.QUESTION.format(kind=scene.kind)
        return (Exchange(views=(_windowed(scene, scene.kind),), question=question, answer=scene.letter),)

    def _window_after_view(self, rng: np.random.Generator) -> tuple[Exchange, ...]:
        scene = window.draw_window_scene(rng, self._window)
        views = (_windowed(scene, "soft_tissue"), _windowed(scene, scene.kind))
        return (Exchange(views=views, question=window.QUESTION.format(kind=scene.kind), answer=scene.letter),)

    def _window_none(self, rng: np.random.Generator) -> tuple[Exchange, ...]:
        scene = window.draw_window_scene(rng, self._window)
        others = [preset for preset in PRESETS if preset != scene.kind]
        view = _windowed(scene, others[int(rng.integers(len(others)))])
        views = (_windowed(scene, "soft_tissue"), view) if rng.random() < 0.5 else (view,)
        return (Exchange(views=views, question=window.QUESTION.format(kind=scene.kind), answer=NONE_ANSWER),)

    def _structure_of(self, rng: np.random.Generator, aspect: str | None) -> tuple[Exchange, ...]:
        scene = structure.draw_structure_scene(rng, self._structure, aspect=aspect)
        question, _ = structure.QUESTIONS[scene.aspect]
        shows_ring = scene.aspect == "quadrant"
        view = DenseView(pixels=scene.view, ring=UNKNOWN if shows_ring else NOTHING, letter_at=NOTHING)
        return (Exchange(views=(view,), question=question, answer=scene.answer),)

    def _repeat(self, rng: np.random.Generator) -> tuple[Exchange, ...]:
        scene = zoom.draw_zoom_scene(rng, self._zoom)
        style = int(rng.integers(3))
        if style == 0:
            text = _box_text(int(rng.integers(NUM_TOKENS)))
            question, answer = REPEAT + text, text
        elif style == 1:
            points = [int(value) for value in rng.integers(10, FULL_PX - 10, 4)]
            question = measure.QUESTION.format(x0=points[0], y0=points[1], x1=points[2], y1=points[3])
            answer = "[{},{}],[{},{}]".format(*points)
            question = REPEAT + question
        else:
            length = f"{rng.uniform(5.0, 300.0):.1f}"
            question, answer = f"{REPEAT}{length} mm", length
        return (Exchange(views=(_thumbnail(scene),), question=question, answer=answer),)
