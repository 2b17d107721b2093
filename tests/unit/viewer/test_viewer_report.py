"""The report of a small made-up run: everything is on the page, nothing comes from outside, no text becomes markup."""

import hashlib
import io
import json
import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvista_ray.config.schema import DataConfig, RunConfig
from medvista_ray.runs.directory import RunDirectory
from medvista_ray.runs.metrics import MetricsWriter
from medvista_ray.runs.summary import ROWS, Summary, validate_summary, write_summary
from medvista_ray.runs.trajectories import TrajectoryRecorder
from medvista_ray.types.messages import ImagePart, ImageRef, Message, Task, TextPart
from medvista_ray.types.tool_calls import ToolCall, ToolFailure
from medvista_ray.types.trajectories import StopReason, Trajectory, TrajectoryGroup, Turn
from medvista_ray.viewer.episodes import choose_episodes
from medvista_ray.viewer.report import render_report, write_report

pytestmark = pytest.mark.xdist_group("report")  # one process makes what its tests share

HOSTILE = "<script>alert('x')</script><img src=http://evil.test/a.png onerror=alert(1)>{{ 7*7 }}&amp;\"'"
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, attributes and texts, and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str, name: str = "") -> list[dict[str, str | None]]:
        return (
            [attrs for found, attrs in self.tags if found == tag and name in (attrs.get("class") or "").split(" ")]
            if name
            else [attrs for found, attrs in self.tags if found == tag]
        )


def parse(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert page._open == []
    return page


def make_picture(seed: int, *, size: tuple[int, int] = (96, 72)) -> tuple[ImageRef, bytes]:
    """Draw a soft ellipse with noise, a little like a slice of a head."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    body = ((x - width / 2) / (width * 0.4)) ** 2 + ((y - height / 2) / (height * 0.45)) ** 2
    noise = np.random.default_rng(seed).normal(0, 10, (height, width))
    pixels = np.clip(np.where(body < 1, 150 - 60 * body, 12) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    data = file.getvalue()
    return ImageRef(digest=hashlib.sha256(data).hexdigest(), width=width, height=height), data


def call_text(call: ToolCall) -> str:
    body = json.dumps({"name": call.name, "arguments": dict(call.arguments)})
    return f"<think>The ring is here.</think><tool_call>{body}</tool_call>"


def make_group(
    index: int,
    family: str,
    calls: list[ToolCall],
    answer: str,
    *,
    right: bool,
    failure: ToolFailure | None = None,
    question: str = "Which letter stands inside of the ring?",
) -> tuple[TrajectoryGroup, dict[str, bytes]]:
    blobs: dict[str, bytes] = {}
    turns = []
    for number, call in enumerate([*calls, None]):
        image, data = make_picture(index * 10 + number)
        blobs[image.digest] = data
        text = question if number == 0 else "12.3 mm" if calls[number - 1].name == "measure" else ""
        message = Message(role="user" if number == 0 else "tool", parts=(ImagePart(image=image), TextPart(text=text)))
        action = f"<think>I can read it.</think><answer>{answer}</answer>" if call is None else call_text(call)
        turns.append(
            Turn(
                turn_index=number,
                messages=(message,),
                action_start=0,
                action_end=2,
                action=action,
                tool_call=call,
                tool_failure=failure if call is not None else None,
            )
        )
    task = Task(task_id=f"{family}-{index}", family=family, question=question, images=())
    trajectory = Trajectory(
        group_id=f"0/{index}/0",
        member=0,
        task_id=task.task_id,
        token_ids=np.zeros(2, np.int32),
        loss_mask=np.ones(2, bool),
        logprobs=np.zeros(2, np.float32),
        turns=tuple(turns),
        reward=2.0 if right else 1.0,
        reward_breakdown={"repetition": 0.0, "format": 1.0, "correct": float(right)},
    )
    return (
        TrajectoryGroup(group_id=trajectory.group_id, attempt=0, incarnation=0, task=task, trajectories=(trajectory,)),
        blobs,
    )


def make_calls(family: str, *, right: bool) -> list[ToolCall]:
    if family == "zoom":
        return [ToolCall(name="zoom", arguments={"bbox": [550, 200, 800, 450] if right else [350, 350, 650, 650]})]
    if family == "window":
        return [ToolCall(name="window_level", arguments={"preset": "bone" if right else "soft_tissue"})]
    if family == "measure":
        return [ToolCall(name="measure", arguments={"points": [[100, 200], [700, 800]]})]
    return []


def make_summary() -> Summary:
    def accuracy(value: float) -> dict[str, object]:
        return {
            "sampled": value,
            "greedy": value,
            "low": value - 0.03,
            "high": min(1.0, value + 0.03),
            "n": 240,
            "num_sources": 9,
        }

    levels = dict(zip(ROWS, (0.25, 0.24, 0.45, 0.26, 0.95), strict=True))
    families = ("overall", "zoom", "window", "structure", "measure")
    return validate_summary(
        {
            "run_name": "demo",
            "mode": "ray",
            "seed": 0,
            "num_parameters": 1_760_000,
            "accuracy": {row: {family: accuracy(level) for family in families} for row, level in levels.items()},
            "valid_answers": dict.fromkeys(ROWS, 0.99),
            "valid_tool_calls": {**dict.fromkeys(ROWS, 0.98), "base": None, "rl_no_tools": None},
            "calls_per_episode": {row: {"zoom": 1.02, "window": 1.1, "structure": 0.01} for row in ROWS},
            "failure_classes": {"rl_tools": {"E6_reasoning": 12, "no_call": 3}},
            "wall_s": {"data": 4, "sft": 130, "rl": 150, "eval": 90, "total": 380},
            "rollout_tokens_per_s": 2345.6,
            "max_abs_logprob_diff": 2.1e-5,
            "staleness": {"mean": 0.8, "max": 2},
            "groups": {"submitted": 340, "consumed": 320, "filtered": 12, "failed": 0, "stale": 8, "cancelled": 0},
            "actors": [{"class": "EnvShardActor", "pid": 101}, {"class": "EngineActor", "pid": 102}],
            "peak_pss_bytes": 4 * 2**30,
            "versions": {"python": "3.11.2", "medvista_ray": "0.1.0", "torch": "2.13.0"},
        }
    )


def make_run(root: Path, *, num_items: int = 12) -> RunDirectory:
    run = RunDirectory.create(root, RunConfig(run_name="demo"), command="train")
    random = np.random.default_rng(0)
    for label in ("rl_tools", "rl_no_tools"):
        with MetricsWriter(run, label, tensorboard=False) as writer:
            for step in range(1, 41):
                rise = 1 - math.exp(-step / 12)
                noise = float(random.normal(0, 0.05))
                writer.write(
                    step,
                    {
                        "rollout/reward/mean": 1.2 + 0.7 * rise + noise,
                        "rollout/reward_zoom/mean": 1.1 + 0.8 * rise - noise,
                        "rollout/reward_window/mean": 1.1 + 0.75 * rise + noise,
                        "buffer/staleness/mean": 0.8 + noise,
                        "buffer/staleness/max": float(random.integers(1, 3)),
                        "reward/correct $x^{$/mean": rise,
                        "learner/kl_rollout/mean": 1e-3 * rise,
                        "learner/entropy/mean": 0.5 - 0.3 * rise + noise / 5,
                        "rollout/action_tokens/per_s": 2300 + 900 * noise,
                    },
                )
    with MetricsWriter(run, "sft", tensorboard=False) as writer:
        for step in range(0, 440, 10):
            writer.write(step, {"sft/loss/nats": 2.0 * math.exp(-step / 90) + 0.2})
    families = ("zoom", "window", "structure", "measure")
    for label, is_right in (("sft_tools", False), ("rl_tools", True)):
        with TrajectoryRecorder(run, label, max_recorded=100) as recorder:
            for index in range(num_items):
                family = families[index % 4]
                right = is_right or family == "structure"
                group, blobs = make_group(index, family, make_calls(family, right=right), "A", right=right)
                assert recorder.record(group, blobs)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = make_run(tmp_path_factory.mktemp("report") / "run")
    write_report(run, make_summary())
    write_summary(run, make_summary())
    return run


@pytest.fixture(scope="module")
def page(run: RunDirectory) -> Page:
    return parse(run.report_path.read_text(encoding="utf-8"))


def test_the_table_has_five_rows_and_every_family(page: Page) -> None:
    for name in (*ROWS, "overall", "zoom", "window", "structure", "measure", "0.42-0.48", "greedy 0.95"):
        assert name in page.text, name


def test_limits_are_said_plainly(page: Page) -> None:
    for words in ("Few subjects", "Made for demonstration", "medical skill", "do not cover new patients", "synthetic"):
        assert words in page.text, words


def test_every_curve_is_drawn(page: Page) -> None:
    for title in (
        "Reward by family",
        "Staleness",
        "KL to the engine",
        "Reward by part",
        "Entropy",
        "Rollout speed",
        "SFT loss",
    ):
        assert title in page.text, title
    for legend in ("rl_tools zoom", "rl_no_tools window", "rl_tools correct $x^{$", "kl_rollout"):
        assert legend in page.text, legend


def test_ten_items_before_and_after_with_their_images(page: Page) -> None:
    assert len(page.all("article")) == 20
    assert page.text.count("before RL (sft_tools)") == 10
    images = page.all("image")
    assert len(images) == 2 * sum(1 if index % 4 == 2 else 2 for index in range(10))
    assert all((image["href"] or "").startswith("data:image/png;base64,") for image in images)


def test_calls_are_drawn_on_the_image_they_were_made_on(page: Page) -> None:
    boxes = [(rect["x"], rect["y"], rect["width"], rect["height"]) for rect in page.all("rect", "mark")]
    assert boxes[:2] == [("33.6", "25.2", "28.8", "21.6"), ("52.8", "14.4", "24.0", "18.0")]  # of 96 x 72 pixels
    assert "M9.6 14.4L67.2 57.6" in [path["d"] for path in page.all("path", "mark")]
    assert "1 window: bone" in page.text
    assert "12.3 mm" in page.text


def test_the_same_run_gives_the_same_page(run: RunDirectory) -> None:
    assert render_report(run) == run.report_path.read_text(encoding="utf-8")


def check_nothing_from_outside(page: Page) -> None:
    assert not [tag for tag, _ in page.tags if tag in ("script", "iframe", "link", "object", "embed", "base", "img")]
    for tag, attrs in page.tags:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "src", "xlink:href", "srcset", "action", "data"):
                assert (value or "").startswith(("data:image/", "#")), (tag, name, value)
    (policy,) = [attrs for tag, attrs in page.tags if tag == "meta" and attrs.get("http-equiv")]
    assert (policy["content"] or "").startswith("default-src 'none'")


def test_nothing_comes_from_outside(run: RunDirectory, page: Page) -> None:
    check_nothing_from_outside(page)
    html = run.report_path.read_text(encoding="utf-8")
    assert "@import" not in html
    assert "url(http" not in html


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    run = RunDirectory.create(
        tmp_path / "run", RunConfig(run_name=HOSTILE, data=DataConfig(source=HOSTILE)), command="train"
    )
    calls = [
        ToolCall(name=HOSTILE, arguments={HOSTILE: HOSTILE}),
        ToolCall(name="window_level", arguments={"preset": HOSTILE, "image": 0}),
        ToolCall(name="zoom", arguments={"bbox": [1, 2, HOSTILE, 4], "image": 99}),
    ]
    group, blobs = make_group(1, HOSTILE, calls, HOSTILE, right=False, failure=ToolFailure.BAD_SCHEMA, question=HOSTILE)
    with TrajectoryRecorder(run, "rl_tools", max_recorded=4) as recorder:
        recorder.record(group, blobs)
    page = parse(render_report(run))
    check_nothing_from_outside(page)
    assert page.text.count(HOSTILE) >= 6  # title, name, family, question, call, answer, full text


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", RunConfig(run_name="half"), command="train")
    page = parse(render_report(run))
    assert "This run is not finished" in page.text
    assert page.all("article") == []


def test_other_data_is_not_called_the_demo_set(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", RunConfig(data=DataConfig(source="/data/mine")), command="train")
    text = parse(render_report(run)).text
    assert "demo set" not in text
    assert "do not cover new patients" in text


def test_a_missing_image_leaves_a_frame(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", num_items=1)
    run.metrics_path.unlink()  # curves take their time
    for path in run.blobs_path.iterdir():
        path.unlink()
    page = parse(render_report(run))
    assert page.all("image") == []
    assert "no copy of this image" in page.text


def test_a_broken_and_a_malformed_episode_are_shown(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", RunConfig(), command="train")
    group, blobs = make_group(1, "zoom", [], "A", right=False)
    whole = group.trajectories[0]
    turn = Turn(turn_index=0, messages=whole.turns[0].messages, action_start=0, action_end=2, action="no tags <at> all")
    broken = Trajectory(
        group_id=whole.group_id,
        member=0,
        task_id=whole.task_id,
        token_ids=whole.token_ids,
        loss_mask=whole.loss_mask,
        logprobs=whole.logprobs,
        turns=(turn,),
        stop_reason=StopReason.BROKEN,
        error="EngineDiedError: the engine is gone",
    )
    with TrajectoryRecorder(run, "train", max_recorded=4) as recorder:
        recorder.record(
            TrajectoryGroup(group_id="0/1/0", attempt=0, incarnation=0, task=group.task, trajectories=(broken,)), blobs
        )
    text = parse(render_report(run)).text
    assert "no tags <at> all" in text
    assert "EngineDiedError: the engine is gone" in text


def test_items_are_chosen_by_family_in_turn_without_repeats() -> None:
    groups = [make_group(index, family, [], "A", right=True)[0] for index, family in enumerate("zzzzws")]
    chosen = choose_episodes([*groups, groups[0]], 5)
    assert [group.task.task_id for group in chosen] == ["z-0", "w-4", "s-5", "z-1", "z-2"]
