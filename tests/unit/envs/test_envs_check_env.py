"""Our stricter check: what holds for our envs, and that each kind of fault is found by the check that is meant to."""

import itertools
import logging
import os
import time
import warnings
from dataclasses import replace

import gymnasium
import numpy as np
import pytest

import medvista_ray.envs  # noqa: F401  -- registers the envs
from medvista_ray.config.schema import EnvConfig
from medvista_ray.data.sources import make_task_source
from medvista_ray.envs.check_env import CHECKS, check_env
from medvista_ray.envs.check_play import Subject, play
from medvista_ray.envs.check_tools import example_arguments
from medvista_ray.envs.medical_vqa import MedicalVQAEnv
from medvista_ray.tools.base import Tool
from medvista_ray.tools.registry import BUILTIN_TOOLS, load_tools

TASKS = make_task_source("pocket", "train", families=(), weights=(), num_tasks=8, seed=0)
TOOLS = ("zoom", "window_level")
COUNTER = itertools.count()


def make_subject(kind, *, num_episodes=60):
    def make(*, tools=None, tool_timeout_s=None):
        config = EnvConfig(view_size_px=84, tools=tuple(tools or TOOLS), tool_timeout_s=tool_timeout_s or 10.0)
        return kind(config=config)

    return Subject(make=make, tasks=TASKS, descriptions=(), tools=TOOLS, step_timeout_s=10.0, num_episodes=num_episodes)


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
        logging.getLogger("own").debug("expected %s", self._episode.reference.boxes.tolist())
        return super().step(action)


class ToStdout(MedicalVQAEnv):
    def step(self, action):
        os.write(1, repr(self._episode.reference.boxes.tolist()).encode())
        return super().step(action)


class ToWarning(MedicalVQAEnv):
    def step(self, action):
        warnings.warn(f"expected {self._episode.reference.boxes.tolist()}", stacklevel=1)
        return super().step(action)


class ToQuietLogger(MedicalVQAEnv):
    def step(self, action):
        logger = logging.getLogger("quiet")
        logger.propagate = False
        logger.info("expected %s", self._episode.reference.boxes.tolist())
        return super().step(action)


class InRewardName(MedicalVQAEnv):
    def step(self, action):
        *rest, info = super().step(action)
        parts = {f"{name}/{self._episode.reference.answer}": part for name, part in info["reward_breakdown"].items()}
        return (*rest, {**info, "reward_breakdown": parts})


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
            time.sleep(4.5)
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
        (ToStdout, "no label leaves", "the reference came out"),
        (ToWarning, "no label leaves", "the reference came out"),
        (ToQuietLogger, "no label leaves", "the reference came out"),
        (InRewardName, "no label leaves", "names in reward_breakdown"),
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


def test_a_hang_past_the_deadline_is_found():
    assert any("held step()" in problem for problem in problems_of(RunsToolsItself, "deadline")["deadline"])


class Fails(Tool):
    name = "fails"
    description = "Always fails."
    parameters = {"type": "object"}  # noqa: RUF012

    def run(self, arguments, context):
        raise RuntimeError("broken")


def test_a_tool_that_always_fails_is_named():
    def make(*, tools=None, tool_timeout_s=None):
        return MedicalVQAEnv(tools=("zoom", f"{__name__}:Fails"), tasks=TASKS, config={"view_size_px": 84})

    subject = Subject(make=make, tasks=TASKS, descriptions=(), tools=("zoom",), step_timeout_s=10.0)
    assert CHECKS["tools"](subject) == [
        "tool 'fails' ends in tool_failed: try it with `medvista tools try`, or give the tool an `example`"
    ]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda task, reference: (task, replace(reference, task_id="another")), "belongs to 'another'"),
        (lambda task, reference: (task, replace(reference, answer="none of them")), "none of the choices"),
        (
            lambda task, reference: (
                replace(task, choices=(), question="Is it pneumonia?"),
                replace(reference, answer="Pneumonia"),
            ),
            "contains its answer",
        ),
    ],
)
def test_a_task_that_cannot_be_right_is_named(change, text):
    record = TASKS[0]
    task, reference = change(record.task, record.reference)
    subject = replace(make_subject(MedicalVQAEnv), tasks=[replace(record, task=task, reference=reference)])
    (problem,) = CHECKS["tasks"](subject)
    assert text in problem


def test_each_tool_is_called_in_an_episode_of_its_own():
    subject = make_subject(MedicalVQAEnv)
    played = play(subject, TASKS[0], TASKS[0].reference)
    assert [name for name, failure in played.outcomes if failure is None] == list(TOOLS)


def test_example_arguments_fit_every_schema():
    from jsonschema import Draft202012Validator

    tools = load_tools(tuple(BUILTIN_TOOLS))
    assert list(tools) == list(BUILTIN_TOOLS)
    for name, tool in tools.items():
        arguments = example_arguments(tool.parameters)
        problems = [error.message for error in Draft202012Validator(dict(tool.parameters)).iter_errors(arguments)]
        assert problems == [], (name, arguments)


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
