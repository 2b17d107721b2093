"""Our stricter check: what holds for our envs, and that each kind of fault is found by the check that is meant to."""

import itertools
import time

import gymnasium
import numpy as np
import pytest

import medvista_ray.envs  # noqa: F401  -- registers the envs
from medvista_ray.config.schema import EnvConfig
from medvista_ray.data.sources import make_task_source
from medvista_ray.envs.check_env import CHECKS, Subject, check_env
from medvista_ray.envs.check_tools import example_arguments
from medvista_ray.envs.medical_vqa import MedicalVQAEnv
from medvista_ray.tools.registry import load_tools

TASKS = make_task_source("pocket", "train", families=(), weights=(), num_tasks=8, seed=0)
TOOLS = ("zoom", "window_level")
COUNTER = itertools.count()


def make_subject(kind, *, num_episodes=60):
    def make(*, tools=None, tool_timeout_s=None):
        config = EnvConfig(view_size_px=84, tools=tuple(tools or TOOLS), tool_timeout_s=tool_timeout_s or 10.0)
        return kind(config=config)

    schemas = {name: tool.parameters for name, tool in load_tools(TOOLS).items()}
    return Subject(
        make=make, tasks=TASKS, tool_schemas=schemas, tools=TOOLS, step_timeout_s=10.0, num_episodes=num_episodes
    )


class InObservation(MedicalVQAEnv):
    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed, options=options)
        return observation, {**info, "where": self._episode.reference.boxes.tolist()}


class InPixels(MedicalVQAEnv):
    """Hides the answer in one pixel: no text to search for, but the picture depends on the reference."""

    def _make_observation(self, episode):
        observation = super()._make_observation(episode)
        if observation["images"]:
            observation["images"][0][0, 0, 0] = len(episode.reference.answer) + int(episode.reference.mask is not None)
        return observation


class InLog(MedicalVQAEnv):
    def step(self, action):
        import logging

        logging.getLogger("own").debug("expected %s", self._episode.reference.boxes.tolist())
        return super().step(action)


class Random(MedicalVQAEnv):
    def step(self, action):
        *rest, info = super().step(action)
        return (*rest, {**info, "count": next(COUNTER)})


class Grows(MedicalVQAEnv):
    kept = []  # noqa: RUF012

    def step(self, action):
        self.kept.append(b"1" * 2_000_000)
        return super().step(action)


class ClosesOnce(MedicalVQAEnv):
    is_closed = False

    def close(self):
        if self.is_closed:
            raise RuntimeError("closed already")
        self.is_closed = True
        super().close()


class LeavesAProcess(MedicalVQAEnv):
    started = []  # noqa: RUF012

    def reset(self, *, seed=None, options=None):
        import subprocess

        self.started.append(subprocess.Popen(["sleep", "60"]))
        return super().reset(seed=seed, options=options)


class RunsToolsItself(MedicalVQAEnv):
    """Runs a hanging tool in its own process, without a deadline."""

    def step(self, action):
        if '"hang"' in action:
            time.sleep(2.5)
        return super().step(action)


class EarlyReward(MedicalVQAEnv):
    def step(self, action):
        observation, reward, *rest = super().step(action)
        return (observation, reward + 0.01, *rest)


def problems_of(kind, *names):
    subject = make_subject(kind)
    return {name: CHECKS[name](subject) for name in names}


def test_our_env_holds():
    results = list(check_env(make_subject(MedicalVQAEnv)))
    assert [result.name for result in results] == list(CHECKS)
    assert [result.problems for result in results] == [()] * len(CHECKS)


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        (InObservation, "no label leaves", "the reference came out"),
        (InPixels, "no label leaves", "depends on the reference"),
        (InLog, "no label leaves", "the reference came out"),
        (Random, "given tasks", "two different episodes"),
        (Grows, "memory", "memory grew"),
        (EarlyReward, "scripted episodes", "a reward before the end"),
    ],
)
def test_a_fault_is_found_by_its_check(kind, name, text):
    problems = problems_of(kind, name)[name]
    assert any(text in problem for problem in problems)


def test_an_exception_is_a_problem_with_its_place():
    results = {result.name: result for result in check_env(make_subject(ClosesOnce))}
    (problem,) = results["close"].problems
    assert "closed already" in problem
    assert "test_envs_check_env.py" in problem


def test_a_process_that_stays_is_found():
    try:
        assert any("outlived" in problem for problem in problems_of(LeavesAProcess, "close")["close"])
    finally:
        for process in LeavesAProcess.started:
            process.kill()
            process.wait()


def test_a_hang_past_the_deadline_is_found(monkeypatch):
    monkeypatch.setattr("medvista_ray.envs.check_env._START_S", 1.0)
    assert any("held step()" in problem for problem in problems_of(RunsToolsItself, "deadline")["deadline"])


def test_example_arguments_fit_every_schema():
    from jsonschema import Draft202012Validator

    for tool in load_tools(("zoom", "window_level", "measure", "flip_rotate")).values():
        Draft202012Validator(dict(tool.parameters)).validate(example_arguments(tool.parameters))


@pytest.mark.parametrize("name", ["MedicalVQA", "Grounding", "InteractiveSegmentation"])
def test_vectorised_runs_give_the_same_trajectories(name):
    """`make_vec` in this process and in others, and envs alone: the same observations and rewards."""
    tool = "add_bbox" if name == "InteractiveSegmentation" else "zoom"
    call = f'<think>x</think><tool_call>{{"name":"{tool}","arguments":{{"bbox":[100,100,600,600]}}}}</tool_call>'
    actions = [(call, call), ("<think>x</think><answer>L</answer>",) * 2]
    config = EnvConfig(tools=("segment_classical" if tool == "add_bbox" else "zoom",), view_size_px=84)
    env_id = f"medvista_ray.envs:medvista/{name}-v0"
    alone = [gymnasium.make(env_id, disable_env_checker=True, config=config) for _ in range(2)]
    vectors = [
        gymnasium.make_vec(env_id, num_envs=2, vectorization_mode="sync", config=config),
        gymnasium.make_vec(
            env_id, num_envs=2, vectorization_mode="async", config=config,
            vector_kwargs={"shared_memory": False, "context": "spawn"},
        ),
    ]  # fmt: skip
    try:
        expected = [env.reset(seed=seed)[0] for seed, env in zip((5, 6), alone, strict=True)]
        for vector in vectors:
            check_same(vector.reset(seed=[5, 6])[0], expected)
        for pair in actions:
            steps = [env.step(action) for action, env in zip(pair, alone, strict=True)]
            for vector in vectors:
                observations, rewards, terminations, truncations, _ = vector.step(pair)
                check_same(observations, [step[0] for step in steps])
                assert rewards.tolist() == [step[1] for step in steps]
                assert terminations.tolist() == [step[2] for step in steps]
                assert truncations.tolist() == [step[3] for step in steps]
    finally:
        for env in (*alone, *vectors):
            env.close()


def check_same(observations, expected):
    for place, one in enumerate(expected):
        assert observations["messages"][place] == one["messages"]
        assert len(observations["images"][place]) == len(one["images"])
        for left, right in zip(observations["images"][place], one["images"], strict=True):
            assert np.array_equal(left, right)
