"""The canary walk: nothing of a reference leaves an env, a tool call, or the repr of anything, but reward numbers."""

import dataclasses
import gc
import json
import pickle

from envs_small_source import SmallSource

from medvista_ray.config.schema import EnvConfig
from medvista_ray.envs.canary import find_leaks, make_canary_reference, needles_of
from medvista_ray.envs.medical_vqa import MedicalVQAEnv
from medvista_ray.images.store import MemoryBlobCache
from medvista_ray.tools.base import Tool, ToolOutput
from medvista_ray.tools.runner import make_tool_runner
from medvista_ray.types.messages import Reference

REFERENCE = make_canary_reference()
ANSWER = REFERENCE.answer
NEEDLES = needles_of(REFERENCE)


class Spy(Tool):
    """Tells all that it can see: arguments, records, and every byte of every image."""

    name = "spy"
    description = "Looks at everything."
    parameters = {"type": "object"}  # noqa: RUF012

    def run(self, arguments, context):
        seen = [repr(vars(context)), repr(context.records), repr(context.key), repr(arguments)]
        for image in context.images:
            seen.append(repr(vars(image)))
            seen.append(image.source_values().tobytes().hex()[:64])
        return ToolOutput(text="\n".join(seen)[:3900])


class KeepingCache(MemoryBlobCache):
    """Remembers every byte that was ever put."""

    def __init__(self):
        super().__init__()
        self.log = []

    def put(self, data):
        self.log.append(data)
        return super().put(data)


def test_every_field_of_a_reference_has_needles():
    for field in dataclasses.fields(Reference):
        alone = dataclasses.replace(Reference(task_id="", answer=""), **{field.name: getattr(REFERENCE, field.name)})
        assert needles_of(alone), field.name


def play(source, actions):
    """Return every byte that left the env on the way, and the env itself."""
    blobs, said = KeepingCache(), []
    config = EnvConfig(view_size_px=30, max_turns=len(actions), tools=("zoom", "window_level", f"{__name__}:Spy"))
    runner = make_tool_runner(config.tools, timeout_s=20, num_workers=1)
    env = MedicalVQAEnv(tasks=source, config=config, blobs=blobs, tools=runner)
    try:
        observation, info = env.reset(options={"task_index": 0})
        said += [repr(env.observe()), repr(info), repr(env), repr(env._episode)]
        for action in actions:
            said += [observation["messages"], *(image.tobytes() for image in observation["images"])]
            observation, reward, terminated, truncated, info = env.step(action)
            said += [repr(reward), repr(info), json.dumps({k: str(v) for k, v in info.items()}), repr(env.__dict__)]
            if not (terminated or truncated):
                said.append(repr(env.observe()))
        said += [observation["messages"], *blobs.log]
    finally:
        runner.close()
    return [piece.encode("utf-8", "surrogatepass") if isinstance(piece, str) else piece for piece in said]


ACTIONS = (
    '<think>x</think><tool_call>{"name":"zoom","arguments":{"bbox":[0,0,500,500]}}</tool_call>',
    '<think>x</think><tool_call>{"name":"spy","arguments":{}}</tool_call>',
    '<think>x</think><tool_call>{"name":"window_level","arguments":{"preset":"bone","image":1}}</tool_call>',
    '<think>x</think><tool_call>{"name":"window_level","arguments":{"preset":"?"}}</tool_call>',
    "<think>x</think><tool_call>}</tool_call>",
    "<think>x</think><answer>unknown</answer>",
)


def test_the_canary_walk():
    source = SmallSource(choices=(), reference=REFERENCE)
    for actions in (ACTIONS, (*ACTIONS[:2], "malformed")):
        said = play(source, actions)
        assert sum(map(len, said)) > 10_000
        assert find_leaks(said, NEEDLES) == []


def test_the_walk_would_find_a_leak():
    class Leaky(SmallSource):
        def __getitem__(self, index):
            record = super().__getitem__(index)
            task = dataclasses.replace(record.task, question=f"Is it {ANSWER}?")
            return dataclasses.replace(record, task=task)

    said = play(Leaky(answers=[ANSWER], choices=()), ACTIONS)
    assert any(ANSWER.encode() in piece for piece in said)


def test_what_a_worker_is_sent_cannot_reach_the_reference():
    source = SmallSource(choices=(), reference=REFERENCE)
    env = MedicalVQAEnv(tasks=source, config=EnvConfig(view_size_px=30))
    env.reset(seed=0)
    shelf = env._episode.shelf
    sent = pickle.dumps(shelf.records) + b"".join(shelf.load(record.ref.digest) for record in shelf.records)
    assert find_leaks([sent], NEEDLES) == []
    assert not any(isinstance(thing, Reference) for thing in reachable(shelf))


def reachable(root, limit=20_000):
    """Walk the objects that a tool's context could follow, modules and classes left out."""
    seen, queue = {id(root)}, [root]
    while queue and len(seen) < limit:
        for thing in gc.get_referents(queue.pop()):
            if id(thing) in seen or isinstance(thing, (type, type(gc))) or hasattr(thing, "__globals__"):
                continue
            seen.add(id(thing))
            queue.append(thing)
            yield thing
