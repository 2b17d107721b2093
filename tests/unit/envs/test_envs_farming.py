"""Farming the default rewards through the real envs: nothing but a better answer earns more."""

import json

import pytest
from test_envs_interactive_segmentation import SPEC

from medvista_ray.config.schema import EnvConfig
from medvista_ray.data.sources import make_task_source
from medvista_ray.envs.grounding import GroundingEnv
from medvista_ray.envs.interactive_segmentation import InteractiveSegmentationEnv
from medvista_ray.envs.medical_vqa import MedicalVQAEnv
from medvista_ray.tools.runner import make_tool_runner

WHOLE = "<box>[0, 0, 1000, 1000]</box>"
GRID = "".join(f"<box>[{x}, {y}, {x + 250}, {y + 250}]</box>" for x in range(0, 1000, 250) for y in (0, 500))
VISION = "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"
KINDS = {
    "vqa": (MedicalVQAEnv, "structure", "vista"),
    "grounding": (GroundingEnv, "insert_box", "grounding"),
    "segmentation": (InteractiveSegmentationEnv, "insert_mask", "segmentation"),
}


@pytest.fixture(scope="module")
def tools():
    runner = make_tool_runner([SPEC, "zoom"], timeout_s=20, num_workers=1)
    yield runner
    runner.close()


@pytest.fixture
def play(tools):
    def run(kind, actions, *, index=0, rubric=""):
        env_class, family, _ = KINDS[kind]
        tasks = make_task_source("pocket", "train", families=(family,), weights=(), num_tasks=8, seed=0)
        config = EnvConfig(tools=(SPEC, "zoom"), view_size_px=84, max_turns=6, rubric=rubric)
        env = env_class(tasks=tasks, tools=tools, config=config)
        record = tasks[index]
        env.reset(options={"task_index": index})
        for action in actions(record) if callable(actions) else actions:
            _, reward, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                return reward
        raise AssertionError("the episode did not end")

    return run


def call(name, **arguments):
    return f"<think>x</think><tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def say(answer, thought="I see it."):
    return f"<think>{thought}</think><answer>{answer}</answer>"


ZOOM = call("zoom", bbox=[0, 0, 500, 500])


def right_answer(record):
    return record.reference.answer


def test_vqa(play):
    honest = play("vqa", lambda record: [say(right_answer(record))])
    wrong = play("vqa", lambda record: [say(next(choice.choice_id for choice in record.task.choices
                                                 if choice.choice_id != right_answer(record)))])  # fmt: skip
    assert honest > wrong
    tricks = {
        "a needless call": lambda record: [ZOOM, say(right_answer(record))],
        "the same call again and again": lambda record: [ZOOM] * 4 + [say(right_answer(record))],
        "echoing the question": lambda record: [say(record.task.question)],
        "echoing it with the answer": lambda record: [say(f"{record.task.question} {right_answer(record)}")],
        "every choice": lambda record: [say(" ".join(choice.choice_id for choice in record.task.choices))],
        "every choice as a list": lambda record: [say(json.dumps([choice.text for choice in record.task.choices]))],
        "image placeholders in the answer": lambda record: [say(right_answer(record) + VISION)],
        "image placeholders in the thought": lambda record: [say(right_answer(record), VISION * 3)],
        "two answers": lambda record: [say(right_answer(record)) + say(right_answer(record))],
        "never answering": lambda record: [ZOOM] * 6,
    }
    for name, actions in tricks.items():
        assert play("vqa", actions) <= honest, name
    for name in ("echoing the question", "echoing it with the answer", "every choice", "every choice as a list"):
        assert play("vqa", tricks[name]) <= wrong, name


def boxes_of(record):
    image = record.task.images[0]
    sides = (image.width, image.height) * 2
    boxes = [[round(v * 1000 / side) for v, side in zip(box, sides, strict=True)] for box in record.reference.boxes]
    return json.dumps(boxes)


def cite(boxes):
    return "".join(f"<box>{box}</box>" for box in json.loads(boxes))


def test_grounding(play):
    for index in range(4):
        honest = play("grounding", lambda r: [say(boxes_of(r), cite(boxes_of(r)))], index=index)
        plain = play("grounding", lambda r: [say(boxes_of(r))], index=index)
        assert honest >= plain
        tricks = {
            "the whole image as evidence": (lambda r: [say(boxes_of(r), WHOLE)], plain),
            "a grid of evidence": (lambda r: [say(boxes_of(r), GRID)], plain),
            "right evidence and a grid": (lambda r: [say(boxes_of(r), cite(boxes_of(r)) + GRID)], honest),
            "the same evidence often": (lambda r: [say(boxes_of(r), cite(boxes_of(r)) * 20)], honest),
            "a needless call": (lambda r: [ZOOM, say(boxes_of(r), cite(boxes_of(r)))], honest),
            "the whole image as answer": (lambda r: [say("[[0, 0, 1000, 1000]]")], plain),
            "every box there could be": (lambda r: [say(json.dumps([[x, 0, x + 9, 9] for x in range(200)]))], plain),
            "image placeholders": (lambda r: [say(boxes_of(r), VISION)], plain),
        }
        for name, (actions, bound) in tricks.items():
            assert play("grounding", actions, index=index) <= bound, (index, name)


def box_of_mask(record):
    rows, columns = record.reference.mask.any(axis=1).nonzero()[0], record.reference.mask.any(axis=0).nonzero()[0]
    height, width = record.reference.mask.shape
    return [
        columns[0] * 1000 // width,
        rows[0] * 1000 // height,
        (columns[-1] + 1) * 1000 // width,
        (rows[-1] + 1) * 1000 // height,
    ]


STOP = call("stop_action")


def outline(record):
    return call("add_bbox", bbox=[int(side) for side in box_of_mask(record)])


def test_segmentation(play):
    away = call("add_bbox", bbox=[0, 0, 60, 60])
    for index in range(4):
        honest = play("segmentation", lambda r: [outline(r), STOP], index=index)
        tricks = {
            "undo and redo": lambda r: [outline(r), away, outline(r), STOP],
            "undo and redo twice": lambda r: [outline(r), away, outline(r), away, outline(r)],
            "redo the same": lambda r: [outline(r), outline(r), outline(r), STOP],
            "bad first, then good": lambda r: [away, outline(r), STOP],
            "good first, then bad": lambda r: [outline(r), away, STOP],
            "a needless look": lambda r: [outline(r), ZOOM, STOP],
            "all of the image": lambda r: [call("add_bbox", bbox=[0, 0, 1000, 1000]), STOP],
            "no end": lambda r: [outline(r)] * 5,
            "an answer instead": lambda r: [outline(r), say("done")],
        }
        for name, actions in tricks.items():
            assert play("segmentation", actions, index=index) <= honest + 1e-9, (index, name)


def test_the_published_formula_pays_for_undoing_and_redoing(play):
    away = call("add_bbox", bbox=[0, 0, 60, 60])
    kept = play("segmentation", lambda r: [outline(r), outline(r), STOP], rubric="segmentation_published")
    farmed = play("segmentation", lambda r: [outline(r), away, outline(r), STOP], rubric="segmentation_published")
    assert farmed > kept
