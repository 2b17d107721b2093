"""The table of packages against the extras of the distribution, and the one line a user sees."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from medvista_ray.config.schema import DataConfig, EnvConfig, RunConfig
from medvista_ray.errors import ConfigError, MissingPackageError
from medvista_ray.recipes.requirements import EXTRAS, check_packages, check_run, needed_extras

LOCAL = RunConfig(mode="local", data=DataConfig(source="pocket"))


def test_the_table_is_what_the_extras_install() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    distributions = importlib.metadata.packages_distributions()
    for extra, modules in EXTRAS.items():
        lines = project["optional-dependencies"][extra]
        wanted = {re.match(r"[A-Za-z0-9_.-]+", line)[0] for line in lines} - {"medvista-ray"}
        assert {distributions[module][0].lower() for module in modules} == wanted


def test_an_extra_is_needed_for_what_the_config_uses() -> None:
    assert needed_extras(LOCAL, needs_ray=True) == ("train",)
    assert needed_extras(replace(LOCAL, mode="ray"), needs_ray=True) == ("train", "ray")
    assert needed_extras(replace(LOCAL, mode="ray"), needs_ray=False) == ("train",)
    assert needed_extras(RunConfig(mode="ray"), needs_ray=True) == ("train", "ray", "demo")


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
        check_packages(config, needs_ray=True)


def test_nothing_is_imported_to_find_out() -> None:
    before = set(sys.modules)
    check_packages(RunConfig(), needs_ray=True)
    assert not {"torch", "ray", "nilearn", "transformers"} & (set(sys.modules) - before)


def test_the_help_and_the_door_load_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "import medvista_ray, medvista_ray.envs\n"
        "from medvista_ray.cli.runs import app\n"
        "app(['--help'], standalone_mode=False)\n"
        "app(['train', '--help'], standalone_mode=False)\n"
        "assert not (loaded := {'torch', 'ray', 'transformers', 'vllm'} & set(sys.modules)), loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_a_view_that_may_show_the_answer_is_refused() -> None:
    for source in ("demo", "pocket"):
        config = RunConfig(data=DataConfig(source=source), env=EnvConfig(view_size_px=448))
        with pytest.raises(
            ConfigError, match=rf"env.view_size_px must be 84 for the zoom family of .*{source}, got 448"
        ):
            check_run(config, splits=("train",), needs_ray=True)
    other = replace(config, data=DataConfig(source="pocket", families=("structure",)))
    check_run(other, splits=("train",), needs_ray=True)


def test_an_env_that_cannot_ask_the_tasks_is_refused() -> None:
    config = RunConfig(
        data=DataConfig(source="pocket", families=("structure",)),
        env=EnvConfig(target="medvista_ray.envs.grounding:GroundingEnv"),
    )
    with pytest.raises(ConfigError, match=r"env\.target: GroundingEnv asks for boxes, .*'structure' for choice"):
        check_run(config, splits=("train",), needs_ray=True)


def test_an_unknown_rubric_is_refused() -> None:
    config = RunConfig(data=DataConfig(source="pocket", families=("structure",)), env=EnvConfig(rubric="vsta"))
    with pytest.raises(ConfigError, match=r"env\.rubric.*vista"):
        check_run(config, splits=("train",), needs_ray=True)
