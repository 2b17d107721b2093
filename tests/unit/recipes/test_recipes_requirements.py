"""The table of packages against the extras of the distribution, and the one line a user sees."""

import importlib.metadata
import re
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from medvista_ray.config.schema import DataConfig, RunConfig
from medvista_ray.errors import MissingPackageError
from medvista_ray.recipes.requirements import EXTRAS, check_packages, needed_extras

LOCAL = RunConfig(mode="local", data=DataConfig(source="pocket"))


def test_the_table_is_what_the_extras_install() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    distributions = importlib.metadata.packages_distributions()
    for extra, modules in EXTRAS.items():
        lines = project["optional-dependencies"][extra]
        wanted = {re.match(r"[A-Za-z0-9_.-]+", line)[0] for line in lines} - {"medvista-ray"}
        assert {distributions[module][0].lower() for module in modules} == wanted


def test_an_extra_is_needed_for_what_the_config_uses() -> None:
    assert needed_extras(LOCAL) == ("train",)
    assert needed_extras(replace(LOCAL, mode="ray")) == ("train", "ray")
    assert needed_extras(RunConfig(mode="ray")) == ("train", "ray", "demo")


@pytest.mark.parametrize(
    ("config", "blocked", "text"),
    [
        (LOCAL, ["torch"], "policy.path=builtin:tiny_base needs .*(torch).*'medvista-ray\\[train\\]'$"),
        (replace(LOCAL, mode="ray"), ["ray"], "mode=ray .*(ray).*'medvista-ray\\[ray\\]', or use --local$"),
        (replace(LOCAL, mode="ray"), ["ray", "torch"], "mode=ray .*torch, ray.*'medvista-ray\\[train,ray\\]'$"),
        (RunConfig(), ["nilearn", "torch"], "data.source=demo .*torch, nilearn.*'medvista-ray\\[demo\\]'$"),
    ],
)
def test_what_is_missing_is_one_line_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, config: RunConfig, blocked: list[str], text: str
) -> None:
    for module in blocked:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=text):
        check_packages(config)


def test_nothing_is_imported_to_find_out() -> None:
    before = set(sys.modules)
    check_packages(RunConfig())
    assert not {"torch", "ray", "nilearn", "transformers"} & (set(sys.modules) - before)
