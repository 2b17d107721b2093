"""Envs from the config: shared tools and caches, and one line for a target that is none."""

from __future__ import annotations

import dataclasses

import pytest
from rollout_parts import CONFIG

from medvista_ray.errors import ConfigError
from medvista_ray.rollout.env_factory import load_env_class, make_env_factory

BAD_TARGETS = {
    "no_such_package:Env": "cannot import 'no_such_package'",
    "medvista_ray.envs:NoEnv": "has no class 'NoEnv'",
    "medvista_ray.envs": "has no class ''",
    "": "cannot import ''",
    ":Env": "cannot import ''",
    ".here:Env": "cannot import '.here'",
    "medvista_ray.rollout.probe:NUM_TURNS": "has no class 'NUM_TURNS'",
}


@pytest.mark.parametrize("target", BAD_TARGETS)
def test_a_target_that_is_none_is_one_line(target):
    with pytest.raises(ConfigError) as caught:
        load_env_class(target)
    assert str(caught.value).startswith(f"env.target={target!r}: ")
    assert BAD_TARGETS[target] in str(caught.value)
    assert "\n" not in str(caught.value)


class Recorder:
    """Somebody's env class: keeps what it is given."""

    def __init__(self, *, config, tools, renderer):
        self.given = (config, tools, renderer)


def test_envs_of_a_process_share_tools_and_views():
    config = dataclasses.replace(CONFIG, target=f"{__name__}:Recorder")
    factory = make_env_factory(config, cache_bytes=1000)
    first, second = factory.make(), factory.make()
    assert first is not second
    assert first.given == second.given
    assert first.given[0] is config
    assert first.given[1] is factory.tools
    assert first.given[2].blobs is factory.cache
    assert first.given[2].view_size_px == CONFIG.view_size_px
    factory.close()
    factory.close()


def test_tools_that_are_not_offered_are_not_loaded():
    factory = make_env_factory(dataclasses.replace(CONFIG, offer_tools=False, tools=("no_such",)), cache_bytes=1000)
    assert factory.tools.descriptions == ()
    factory.close()
