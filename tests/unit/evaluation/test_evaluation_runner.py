"""Held-out episodes in the real env: every item, every member, in order, and never more than allowed at once."""

from __future__ import annotations

import pytest

from medvista_ray.config.schema import EnvConfig
from medvista_ray.data.sources import make_task_source
from medvista_ray.evaluation.runner import EvaluationParts, evaluate_tasks
from medvista_ray.rendering.renderer import load_renderer
from medvista_ray.rollout.env_factory import make_env_factory
from medvista_ray.rollout.episode import EpisodeRunner, EpisodeSettings
from medvista_ray.testing.blobs import MemoryBlobStore
from medvista_ray.testing.inference import ScriptedPolicyClient
from medvista_ray.testing.renderer_folder import write_renderer_folder

CONFIG = EnvConfig(view_size_px=84, max_turns=3, tool_prompt="names", list_choices=False)
TASKS = make_task_source("pocket", "held_out", families=("zoom",), weights=(1.0,), num_tasks=5, seed=0)
GUESS = TASKS[0].reference.answer
ZOOM = '<think>x</think><tool_call>{"name":"zoom","arguments":{"bbox":[0,0,333,333]}}</tool_call>'


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    return load_renderer(write_renderer_folder(tmp_path_factory.mktemp("policy")))


@pytest.fixture
def factory():
    made = make_env_factory(CONFIG, cache_bytes=2**24)
    yield made
    made.close()


def make_parts(renderer, factory, client):
    blobs = MemoryBlobStore()
    settings = EpisodeSettings(max_action_tokens=100, max_context_tokens=2000, timeout_s=60.0)
    runner = EpisodeRunner(renderer=renderer, client=client, blobs=blobs, settings=settings)
    return EvaluationParts(runner=runner, factory=factory, blobs=blobs)


def make_client(renderer):
    """Member 0 zooms and answers; member 1 answers at once; the others are malformed."""
    texts = {0: (ZOOM, f"<think>x</think><answer>{GUESS}</answer>"), 1: (f"<think>x</think><answer>{GUESS}</answer>",)}

    def act(request):
        plan = texts.get(request.member, ("nonsense",))
        return renderer.encode_action(plan[request.turn_index]).tolist()

    return ScriptedPolicyClient(act, delay_s=0.001)


async def test_outcomes_come_in_order_of_items_then_members(renderer, factory):
    client, progress, groups = make_client(renderer), [], []
    outcomes = await evaluate_tasks(
        TASKS,
        parts=make_parts(renderer, factory, client),
        samples_per_item=3,
        greedy=False,
        max_concurrent=6,
        epoch=2,
        on_group=groups.append,
        on_progress=lambda done, total: progress.append((done, total)),
    )
    records = [TASKS[index] for index in range(5)]
    expected = [(record, member) for record in records for member in range(3)]
    for outcome, (record, member) in zip(outcomes, expected, strict=True):
        assert outcome.item_id == record.task.task_id
        assert outcome.family == "zoom"
        assert outcome.source == record.task.metadata["source"]
        assert not outcome.greedy
        assert outcome.correct is (member < 2 and record.reference.answer == GUESS)
        assert outcome.is_valid_answer is (member < 2)
        assert (outcome.num_calls_opened, outcome.num_calls_valid) == ((1, 1) if member == 0 else (0, 0))
        assert outcome.num_turns == (2 if member == 0 else 1)
    assert {outcome.correct for outcome in outcomes} == {True, False}
    assert progress == [(number, 5) for number in range(1, 6)]
    assert sorted(group.group_id for group in groups) == [f"2/{index}/0" for index in range(5)]


@pytest.mark.parametrize(("samples", "max_concurrent", "most"), [(2, 4, 4), (2, 1, 2), (1, 3, 3)])
async def test_no_more_episodes_than_allowed_run_at_once(renderer, factory, samples, max_concurrent, most):
    client = make_client(renderer)
    parts = make_parts(renderer, factory, client)
    counts = []
    script = client._script

    def act(request):
        counts.append(parts.live())
        return script(request)

    client._script = act
    outcomes = await evaluate_tasks(
        TASKS, parts=parts, samples_per_item=samples, greedy=True, max_concurrent=max_concurrent
    )
    assert len(outcomes) == 5 * samples
    assert max(counts) == most
    assert parts.live() == 0
    assert all(outcome.greedy for outcome in outcomes)
