"""Files merge left to right, then overrides; every kind of mistake is one line that names the key and the remedy."""

import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvista_ray.config.load import dump_config, load_config
from medvista_ray.config.schema import DataConfig, PolicyConfig, RunConfig
from medvista_ray.errors import ConfigError


def write(folder: Path, text: str, name: str = "config.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_nothing_given_is_the_defaults() -> None:
    assert load_config() == RunConfig()


def test_files_merge_left_to_right_then_overrides(tmp_path: Path) -> None:
    first = write(tmp_path, "run_name: a\nlearner: {lr: 1.0e-4, minibatches: 2}\ndata:\n  families: [zoom, window]\n")
    second = write(tmp_path, "learner:\n  lr: 2e-4\n", "second.yaml")
    config = load_config([first, str(second)], ["learner.minibatches=3", "seed=7"])
    assert (config.run_name, config.seed) == ("a", 7)
    assert (config.learner.lr, config.learner.minibatches) == (2e-4, 3)
    assert config.data.families == ("zoom", "window")
    assert config.buffer == RunConfig().buffer


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.families=[zoom,window]", ("zoom", "window")),
        ("data.families=zoom,window", ("zoom", "window")),
        ("data.families=zoom", ("zoom",)),
        ("families=zoom", ("zoom",)),  # the only field of this name
    ],
)
def test_lists_on_the_command_line(override: str, expected: tuple[str, ...]) -> None:
    assert load_config([], [override]).data.families == expected


@pytest.mark.parametrize("text", ["0123", "1e3", "a=b", "[a", "true", "null", "a: b", "'quoted'", "# hash"])
def test_text_on_the_command_line_stays_as_written(text: str) -> None:
    assert load_config([], [f"policy.path={text}"]).policy.path == text


def test_integers_are_taken_for_numbers_and_an_empty_text_is_a_text() -> None:
    config = load_config([], ["learner.lr=1", "learner.betas=[0,0.5]", "cluster.address=", "env.offer_tools=false"])
    assert isinstance(config.learner.lr, float)
    assert config.learner.betas == (0.0, 0.5)
    assert config.cluster.address == ""
    assert config.env.offer_tools is False


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load_config([write(tmp_path, "")]) == RunConfig()


def test_interpolation_is_resolved(tmp_path: Path) -> None:
    assert load_config([write(tmp_path, "run_name: x\nout: 'runs/${run_name}'\n")]).out == "runs/x"


OVERRIDE_MISTAKES = {
    "learner.lrr=1": r"^unknown config key 'learner.lrr' \(on the command line\): did you mean learner.lr\?$",
    "learnr.lr=1": r"did you mean learner.lr\?$",
    "buffer.lr=1": r"unknown config key 'buffer.lr'",
    "max_stalenes=1": r"did you mean buffer.max_staleness\?$",
    "qqqqqqqq=1": r"the sections are policy, data, env,",
    "num_threads=2": r"names 4 settings .*: write one of inference.num_threads, learner.num_threads, sft.num_threads",
    "learner=1": r"^learner is a section, not a setting .* write learner.<name>=value$",
    "data.families.0=zoom": r"did you mean data.families\?$",
    "learner.lr": r"^override 'learner.lr' must be key=value, for example",
    "=3": r"must be key=value",
    "": r"must be key=value",
    "learner.lr=fast": r"^learner.lr must be a number, got 'fast' \(on the command line\)$",
    "learner.lr=": r"^learner.lr must be a number, got None",
    "learner.lr=[": r"^learner.lr must be a number, got '\['",
    "learner.lr={a: 1}": r"^learner.lr must be a number",
    "learner.lr=nan": r"^learner.lr must be finite, got '?nan",
    "learner.weight_decay=.inf": r"^learner.weight_decay must be finite, got inf",
    "data.weights=[1,.nan,1,1]": r"^data.weights must be finite",
    "learner.lr=-1": r"^learner.lr must be > 0, got -1.0$",
    "learner.world_size=1.5": r"^learner.world_size must be an integer, got 1.5",
    "learner.world_size=true": r"^learner.world_size must be an integer, got True",
    "learner.world_size=???": r"^learner.world_size must be an integer, got '\?\?\?'",
    "policy.path=???": r"^policy.path must be text",
    "env.offer_tools=maybe": r"^env.offer_tools must be true or false, got 'maybe'",
    "mode=fast": r"^mode must be one of ray, local, got 'fast'",
    "learner.betas=[0.9]": r"^learner.betas must be a list of 2 numbers, got \[0.9\]",
    "learner.betas=0.9,a": r"^learner.betas must be a list of 2 numbers",
    "data.weights=[a]": r"^data.weights must be a list of numbers, got \['a'\]",
    "data.weights=1,-1": r"^data.weights must be >= 0 each",
    "seed=-1": r"^seed must be >= 0, got -1$",
    "policy.device=cuba": r"^policy.device must be auto, cpu, cuda or cuda:<number>, got 'cuba'$",
    "learner.betas=[2,.9]": r"^learner.betas must be two numbers in \[0, 1\)",
    "buffer.max_concurrent=17": r"^buffer.max_concurrent must be <= rollout.num_shards \* .* = 16, got 17$",
    "out=${nothing}": r"^out: .*nothing.*\(on the command line\)$",
}


@pytest.mark.parametrize("override", OVERRIDE_MISTAKES)
def test_a_wrong_override_is_one_line(override: str) -> None:
    with pytest.raises(ConfigError, match=OVERRIDE_MISTAKES[override]) as caught:
        load_config([], [override])
    assert "\n" not in str(caught.value)


FILE_MISTAKES = {
    "learner: {lrr: 1}": r"^unknown config key 'learner.lrr' \(in .*config.yaml\): did you mean learner.lr\?$",
    "learner: 3": r"^learner must be a section of `key: value` lines, got 3 \(in .*config.yaml\)$",
    "learner:": r"^learner must be a section .* got None",
    "learner: [1]": r"^learner must be a section",
    "families: [zoom]": r"^unknown config key 'families' .* did you mean data.families\?$",
    "1: 2": r"^unknown config key '1'",
    "data: {families: zoom}": r"^data.families must be a list of texts, got 'zoom' \(in",
    "data: {families: {zoom: 1}}": r"^data.families must be a list of texts",
    "run_name: 12": r"^run_name must be text \(in quotes if it looks like a number\), got 12",
    "learner: {lr: 1e}": r"^learner.lr must be a number, got '1e' \(in",
    "learner: {lr": r"^config file '.*config.yaml' is not YAML at line \d+: ",
    "seed: 1\nseed: 2": r"is not YAML at line 2: found duplicate key",
    "- a\n- b": r"must hold `key: value` lines, got list$",
    "just text": r"^unknown config key 'just text'",
    "sft: {steps: 0}": r"^sft.steps must be >= 1, got 0$",
}


@pytest.mark.parametrize("text", FILE_MISTAKES)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=FILE_MISTAKES[text]) as caught:
        load_config([write(tmp_path, text)])
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^config file '.*nothing.yaml' does not exist: give"):
        load_config([tmp_path / "nothing.yaml"])
    with pytest.raises(ConfigError, match="does not exist"):
        load_config([tmp_path])
    (tmp_path / "image.yaml").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ConfigError, match=r"^config file '.*image.yaml' is not YAML"):
        load_config([tmp_path / "image.yaml"])


@settings(max_examples=8, deadline=None)
@given(
    st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1).filter(
        lambda text: text.strip() and "${" not in text and text != "???"
    ),
    st.integers(0, 2**40),
    st.lists(st.sampled_from(["zoom", "12", "true", "a b"]), min_size=1, max_size=4),
)
def test_a_dumped_config_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, name: str, seed: int, families: list[str]
) -> None:
    config = RunConfig(
        run_name=name, seed=seed, data=DataConfig(families=tuple(families)), policy=PolicyConfig(path="0123")
    )
    path = tmp_path_factory.mktemp("dump") / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config([path]) == config


def test_a_dump_has_every_section() -> None:
    sections = re.findall(r"^(\w+):$", dump_config(RunConfig()), re.MULTILINE)
    assert sections[:3] == ["policy", "data", "env"]
    assert "families:" in dump_config(RunConfig())


def test_no_number_may_be_negative() -> None:
    sections = [getattr(RunConfig(), field.name) for field in fields(RunConfig)]
    checked = 0
    for section in [RunConfig(), *(section for section in sections if is_dataclass(section))]:
        hints = get_type_hints(type(section))
        for name in [field.name for field in fields(section) if hints[field.name] in (int, float)]:
            checked += 1
            with pytest.raises(ConfigError, match=rf"(^|\.){name} must be "):
                replace(section, **{name: -1})
    assert checked > 60


@pytest.mark.parametrize("words", [["learner.world_size=2"], ["buffer.max_staleness=0", "inference.num_engines=2"]])
def test_what_one_process_cannot_do_is_refused(words: list[str]) -> None:
    load_config([], words)
    with pytest.raises(ConfigError, match="1 with mode=local"):
        load_config([], ["mode=local", *words])
