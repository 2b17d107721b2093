"""`medvista demo --quick` on Ray: the tiny model learns to look where the ring is, and everything is written down."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean

import pytest
from command_line import MEDVISTA, make_environment
from demo_checks import check_files, check_report, check_summary
from processes import family_of, read_command_line

from medvista_ray.runs.directory import RunDirectory
from medvista_ray.runs.metrics import read_metrics
from medvista_ray.runs.trajectories import read_blob, read_trajectories, shown_images

pytestmark = pytest.mark.timeout(1800)

PLAIN = """
import sys
import torch
if torch.version.cuda is None:  # the torchvision wheel is built for CUDA; any program beside a CPU torch needs this
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder, image = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder).eval()
content = [{"type": "image"}, {"type": "text", "text": "Which letter is in the ring?"}]
messages = [
    {"role": "system", "content": "Tools: zoom, window_level, measure, flip_rotate."},
    {"role": "user", "content": content},
]
text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
inputs = processor(text=[text], images=[Image.open(image)], return_tensors="pt")
ids = model.generate(**inputs, max_new_tokens=40, do_sample=False)
print(processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1]:]))
assert not [name for name in sys.modules if name.startswith("medvista")]
"""


def run_demo(out: Path, *, kill_shard: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the quick demo into a folder; if asked to, kill one env shard in the middle of reinforcement learning."""
    command = [MEDVISTA, "demo", "--quick", "--out", out]
    process = subprocess.Popen(
        command, env=make_environment(), cwd=out.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with ThreadPoolExecutor(1) as executor:
        killer = executor.submit(kill_a_shard, process, out) if kill_shard else None
        try:
            stdout, stderr = process.communicate(timeout=1700)
        finally:
            process.kill()
        if killer is not None:
            killer.result()
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def kill_a_shard(process: subprocess.Popen[str], out: Path) -> None:
    """Send SIGKILL to an env shard after five train steps."""
    while process.poll() is None:
        if len(train_steps(out)) >= 5:
            for pid in family_of(process.pid):
                if "ray::EnvShardActor" in read_command_line(pid):
                    os.kill(pid, signal.SIGKILL)
                    return
        time.sleep(0.2)
    raise AssertionError("the demo ended before a shard could be killed")


def train_steps(out: Path) -> list[float]:
    """Return the train steps so far; the file is being written."""
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}") and "learner/train_s" in line]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("demo") / "quick"
    done = run_demo(out, kill_shard=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "report.html" in done.stdout
    yield out
    shutil.rmtree(out)


def test_a_killed_shard_costs_nothing(demo: Path) -> None:
    """Its groups are issued again: every task is settled once, none has failed."""
    run = RunDirectory.open(demo)
    summary = json.loads((demo / "summary.json").read_text())
    groups = summary["groups"]
    assert groups["consumed"] + groups["filtered"] == groups["submitted"] - groups["stale"] - groups["cancelled"]
    assert groups["consumed"] + groups["filtered"] == run.read_config().data.num_tasks
    assert summary["recoveries"]["env/recovered/shards"] == 1
    assert read_metrics(run, "rl_tools")[-1].values["env/recovered/shards"] == 1


def gain(run: Path, key: str) -> float:
    """Return how much a metric of committed groups has risen: the last fifth of the train steps over the first."""
    points = [point.values for point in read_metrics(RunDirectory.open(run), "rl_tools") if key in point.values]
    fifth = len(points) // 5
    first, last = (
        fmean([point[key] for point in part], weights=[point["rollout/groups/count"] for point in part])
        for part in (points[:fifth], points[-fifth:])
    )
    print(f"{key}: {first:.3f} -> {last:.3f}")
    return last - first


def test_it_learns(demo: Path) -> None:
    summary = check_summary(demo)
    before, after = (summary["accuracy"][row]["zoom"]["sampled"] for row in ("sft_tools", "rl_tools"))
    assert after - before >= 0.15, (before, after)
    assert gain(demo, "reward/correct/mean") >= 0.15
    assert gain(demo, "rollout/reward/mean") >= 0.05  # of 2; its format part is noisy
    assert summary["calls_per_episode"]["rl_tools"]["zoom"] >= 0.85  # half as much SFT as the whole demo
    assert summary["valid_tool_calls"]["rl_tools"] >= 0.85


def test_everything_is_written_down(demo: Path) -> None:
    check_files(demo, labels=("rl_tools",))
    check_report(demo)


def test_the_model_is_an_ordinary_folder(demo: Path, tmp_path: Path) -> None:
    """Load it with plain transformers, chat template and processor included, and let it speak."""
    run = RunDirectory.open(demo)
    shown = shown_images(next(iter(read_trajectories(run, "rl_tools"))))
    (tmp_path / "view.png").write_bytes(read_blob(run, next(iter(shown.values()))))
    command = [sys.executable, "-c", PLAIN, str(demo / "models" / "rl_tools"), str(tmp_path / "view.png")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "<think>" in done.stdout
    assert "<tool_call>" in done.stdout or "<answer>" in done.stdout


def test_a_second_call_finds_everything_done(demo: Path) -> None:
    before = (demo / "summary.json").read_text()
    written_ns = (demo / "models" / "rl_tools" / "model.safetensors").stat().st_mtime_ns
    started_s = time.monotonic()
    done = run_demo(demo)
    assert done.returncode == 0, done.stderr[-4000:]
    assert time.monotonic() - started_s < 120  # nothing is computed again
    for stage in ("data", "sft_tools", "rl_tools", "eval-sft_tools", "eval-rl_tools"):
        assert f"{stage}: done before" in done.stderr
    assert (demo / "summary.json").read_text() == before
    assert (demo / "models" / "rl_tools" / "model.safetensors").stat().st_mtime_ns == written_ns
