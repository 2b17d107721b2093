"""The pages of tools and envs say what tools and envs do: their made parts and pictures are made again and compared."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from medvista_ray.data.packages import prepare_embedded
from medvista_ray.envs.grounding import GroundingEnv
from medvista_ray.envs.interactive_segmentation import InteractiveSegmentationEnv
from medvista_ray.envs.medical_vqa import MedicalVQAEnv
from medvista_ray.images.windowing import PRESETS
from medvista_ray.rewards.registry import BUILTIN_RUBRICS
from medvista_ray.tools.registry import BUILTIN_TOOLS

DOCS = Path(__file__).parents[2] / "docs"
MODELS = ("segment", "read_text")  # another processor may move an edge by a pixel
ENVS = {
    "medical_vqa": MedicalVQAEnv,
    "interactive_segmentation": InteractiveSegmentationEnv,
    "grounding": GroundingEnv,
}
NUMBER = re.compile(r"\d+(?:\.\d+)?")


@pytest.fixture(scope="module", autouse=True)
def docs_are_importable() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        yield


@pytest.fixture(scope="module")
def tool_pages() -> ModuleType:
    import make_tool_pages

    return make_tool_pages


@pytest.fixture(scope="module")
def env_pages() -> ModuleType:
    import make_env_pages

    return make_env_pages


@pytest.fixture(scope="module")
def prepared(medvista) -> None:
    """Fetch what two of the pages need: the nuclei of `ground`, the weights of `segment`."""
    prepare_embedded()
    done = medvista(["tools", "prepare", "segment"])
    assert done.returncode == 0, done.stderr


def numbers_apart(text: str) -> tuple[str, list[float]]:
    return NUMBER.sub("#", text), [float(number) for number in NUMBER.findall(text)]


def check_picture(committed: Path, drawn: Image.Image, folder: Path) -> None:
    """Compare a committed picture with the same picture made now."""
    from page_parts import is_nearly_equal, save_picture

    save_picture(drawn, folder / committed.name)
    with Image.open(committed) as old, Image.open(folder / committed.name) as new:
        assert is_nearly_equal(old, new), f"{committed} is not what the code draws: see {folder / committed.name}"


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("name", BUILTIN_TOOLS)
def test_a_tool_page_is_what_the_tool_does(tool_pages: ModuleType, name: str, tmp_path: Path) -> None:
    page = (DOCS / "tools" / f"{name}.md").read_text()
    made, picture = tool_pages.render_page(name)
    if name in MODELS:
        (words, numbers), (made_words, made_numbers) = numbers_apart(page), numbers_apart(made)
        assert made_words == words
        assert made_numbers == pytest.approx(numbers, rel=0.03, abs=5)
    else:
        assert made == page, f"run python docs/make_tool_pages.py {name}"
    assert not re.search(r"^(bad_schema|bad_argument|tool_failed|timed_out|not_installed): ", page, re.MULTILINE)
    check_picture(DOCS / "images" / "tools" / f"{name}.png", picture, tmp_path)


def test_every_tool_has_a_page_and_stands_in_the_index(tool_pages: ModuleType) -> None:
    pages = {path.stem for path in (DOCS / "tools").glob("*.md")}
    assert pages == {*BUILTIN_TOOLS, "README"}
    assert (DOCS / "tools" / "README.md").read_text() == tool_pages.render_index(), "run python docs/make_tool_pages.py"


def test_the_table_of_arguments_says_the_values_of_lists(tool_pages: ModuleType) -> None:
    labels = {"type": "array", "items": {"type": "integer", "enum": [0, 1]}}
    assert tool_pages.describe_value(labels) == "list: `0`, `1`"
    for name in BUILTIN_TOOLS:
        table = re.findall(r"^\| `.*$", (DOCS / "tools" / f"{name}.md").read_text(), re.MULTILINE)
        assert table, name
        assert "None" not in "".join(table), name


@pytest.mark.parametrize("name", ENVS)
def test_an_env_page_is_what_the_env_does(env_pages: ModuleType, name: str, tmp_path: Path) -> None:
    page = (DOCS / "envs" / f"{name}.md").read_text()
    made, picture = env_pages.render_page(name)
    assert made == page, f"run python docs/make_env_pages.py {name}"
    check_picture(DOCS / "images" / "envs" / f"{name}.png", picture, tmp_path)


def test_the_index_of_envs_says_their_defaults() -> None:
    index = (DOCS / "envs" / "README.md").read_text()
    assert {path.stem for path in (DOCS / "envs").glob("*.md")} == {*ENVS, "README"}
    for name, env in ENVS.items():
        (row,) = (line for line in index.splitlines() if f"]({name}.md)" in line)
        assert row.endswith(f"| `{env.default_rubric}` |")
        assert all(f"`{tool}`" in row for tool in env.make_default_config().tools)
    assert all(f"`{rubric}`" in index for rubric in BUILTIN_RUBRICS)


def test_the_page_of_windows_says_every_preset() -> None:
    page = (DOCS / "tools" / "window_level.md").read_text()
    assert all(f"`{name}` {center:g}, {width:g}" in page for name, (center, width) in PRESETS.items())


def test_another_picture_is_not_nearly_equal(tmp_path: Path) -> None:
    from page_parts import is_nearly_equal

    with Image.open(DOCS / "images" / "tools" / "window_level.png") as image:
        picture = image.convert("RGB")
    shifted = picture.copy()
    shifted.paste(picture, (12, 0))
    assert is_nearly_equal(picture, picture)
    assert not is_nearly_equal(picture, shifted)
    assert not is_nearly_equal(picture, picture.crop((0, 0, 100, 100)))


def test_pictures_are_small_and_shown() -> None:
    for folder in ("tools", "envs"):
        pages = "".join(path.read_text() for path in (DOCS / folder).glob("*.md"))
        for path in (DOCS / "images" / folder).iterdir():
            with Image.open(path) as image:
                assert image.width <= 900, path
            assert path.stat().st_size <= 150_000, path
            assert f"../images/{folder}/{path.name}" in pages, path


def test_a_page_without_a_part_that_is_made_is_refused() -> None:
    from page_parts import fill_parts

    page = "a\n<!-- made: tool -->\nold\n<!-- end -->\nb\n"
    assert fill_parts(page, {"tool": "new"}) == "a\n<!-- made: tool -->\nnew\n<!-- end -->\nb\n"
    with pytest.raises(ValueError, match="answer"):
        fill_parts(page, {"tool": "new", "answer": "x"})
