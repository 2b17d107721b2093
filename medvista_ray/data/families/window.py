"""Window: a letter on an insert whose values the default window clips, in real CT or MR of more than 8 bits.

The question names the kind of insert; each kind is readable under exactly one preset, and each preset is right for a
third of the items, so no constant policy wins.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from medvista_ray.data.letters import LETTERS, letter_cells
from medvista_ray.data.scene import VIEW_PX, Pool, all_views_equal, draw_cut, encode_values
from medvista_ray.images.windowing import DEFAULT_PRESET, PRESETS, apply_window, to_rgb
from medvista_ray.types.messages import Choice, Reference, Task
from medvista_ray.types.protocols import TaskRecord

FAMILY = "window"
QUESTION = "Which letter is on the {kind}-dense insert?"
CHOICES = tuple(Choice(choice_id=letter, text=letter) for letter in LETTERS)
# kind -> (insert, its jitter, letter, its jitter), HU; the kind is also the name of the preset that shows it
INSERTS: dict[str, tuple[float, float, float, float]] = {
    "lung": (-950.0, 60.0, -540.0, 30.0),
    "bone": (520.0, 80.0, 1120.0, 80.0),
    "metal": (2350.0, 150.0, 3300.0, 200.0),
}
KINDS = tuple(INSERTS)
_GRID = 7


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WindowScene:
    """One drawn item."""

    values: np.ndarray  # float32 [84, 84]
    letter: str
    kind: str
    center: tuple[int, int]  # x, y of the insert, pixels
    radius_px: float
    cell_px: int  # side of one cell of the letter
    insert_hu: float
    letter_hu: float
    source: str
    modality: str
    spacing_mm: tuple[float, float] | None

    def view(self, preset: str = DEFAULT_PRESET) -> np.ndarray:
        """Return the item under a preset, uint8 [84, 84, 3]."""
        center, width = PRESETS[preset]
        return to_rgb(apply_window(np.round(self.values), center=center, width=width))

    def is_readable(self, preset: str) -> bool:
        """Return whether the letter differs from its insert under a preset by more than one grey level."""
        x, y = self.center
        radius = int(self.radius_px * 0.7)
        part = self.view(preset)[y - radius : y + radius, x - radius : x + radius, 0]
        return int(part.max()) - int(part.min()) > 1


def draw_window_scene(rng: np.random.Generator, pool: Pool) -> WindowScene:
    """Draw an item; one that is not readable under exactly its own preset is drawn again."""
    while True:
        image = pool.draw(rng)
        cut = draw_cut(rng, image, VIEW_PX, use_values=True)
        kind = KINDS[int(rng.integers(len(KINDS)))]
        letter = LETTERS[int(rng.integers(len(LETTERS)))]
        cell_px = int(rng.choice([3, 4]))
        center = (int(rng.integers(24, VIEW_PX - 23)), int(rng.integers(24, VIEW_PX - 23)))
        jitter = rng.uniform(-1.0, 1.0, 2)
        insert_hu, insert_jitter, letter_hu, letter_jitter = INSERTS[kind]
        blank = WindowScene(
            values=cut.pixels.astype(np.float32),
            letter=letter,
            kind=kind,
            center=center,
            radius_px=17.5 if cell_px == 3 else 22.5,
            cell_px=cell_px,
            insert_hu=insert_hu + insert_jitter * jitter[0],
            letter_hu=letter_hu + letter_jitter * jitter[1],
            source=image.source,
            modality=image.modality,
            spacing_mm=cut.spacing_mm,
        )
        scenes = {each: with_letter(blank, each) for each in LETTERS}
        readable = [preset for preset in PRESETS if scenes[letter].is_readable(preset)]
        if readable == [kind] and all_views_equal([scene.view() for scene in scenes.values()]):
            return scenes[letter]


def with_letter(scene: WindowScene, letter: str) -> WindowScene:
    """Return the same item with another letter: the insert is drawn again, it holds all of a letter."""
    written = scene.values.copy()
    x, y = scene.center
    rows, columns = np.ogrid[:VIEW_PX, :VIEW_PX]
    written[(rows - y) ** 2 + (columns - x) ** 2 <= scene.radius_px * scene.radius_px] = scene.insert_hu
    ink = np.kron(letter_cells(letter, _GRID), np.ones((scene.cell_px, scene.cell_px), dtype=bool))
    half = ink.shape[0] // 2
    part = written[y - half : y - half + ink.shape[0], x - half : x - half + ink.shape[1]]
    part[ink] = scene.letter_hu
    return replace(scene, values=written, letter=letter)


def make_window_record(scene: WindowScene, task_id: str) -> TaskRecord:
    """Turn a scene into a task and its reference."""
    ref, blobs = encode_values(scene.values, spacing_mm=scene.spacing_mm, modality=scene.modality)
    x, y = scene.center
    radius = scene.radius_px
    return TaskRecord(
        task=Task(
            task_id=task_id,
            family=FAMILY,
            question=QUESTION.format(kind=scene.kind),
            images=(ref,),
            choices=CHOICES,
            metadata={"source": scene.source, "synthetic_insert": True},
        ),
        reference=Reference(
            task_id=task_id,
            answer=scene.letter,
            boxes=np.array([[x - radius, y - radius, x + radius, y + radius]], dtype=np.float32),
        ),
        blobs=blobs,
    )
