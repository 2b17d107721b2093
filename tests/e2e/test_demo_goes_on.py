"""A demo that was interrupted goes on stage by stage; what changed settings have made outdated runs again."""

import json
import signal
import subprocess
import time
from pathlib import Path

from command_line import MEDVISTA, make_environment

# The demo in miniature: pocket images, few tasks, few updates. It learns nothing; it only goes through the stages.
SMALL = (
    "--local",
    "families=zoom",
    "data.source=pocket",
    "data.num_tasks=8",
    "data.num_held_out=3",
    "coldstart.num_trajectories=24",
    "sft.steps=3",
    "sft.batch_size=4",
    "rollout.group_size=2",
    "buffer.groups_per_step=2",
    "evaluation.bootstrap_draws=50",
)
STAGES = ["data", "sft_tools", "rl_tools", "eval-sft_tools", "eval-rl_tools"]


def lines_of(stderr: str) -> dict[str, str]:
    """Return what was said of each stage at its end."""
    return {
        stage: line.partition(": ")[2]
        for stage in STAGES
        for line in stderr.splitlines()
        if line.startswith(f"{stage}: ")
    }


def test_an_interrupted_demo_goes_on_and_changed_settings_run_again(medvista, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [MEDVISTA, "demo", *SMALL, "sft.steps=2000", "--out", out],
            cwd=tmp_path,
            env=make_environment(),
            stdout=file,
            stderr=file,
        )
    try:
        deadline = time.monotonic() + 120
        while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():  # SFT is under way
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130, log.read_text()
    finally:
        process.kill()
    assert "goes on from here" in log.read_text().splitlines()[-1]
    assert "Traceback" not in log.read_text()
    assert not (out / "summary.json").exists()

    state = out / "checkpoints" / "sft_tools-sft" / "newest"
    assert state.is_dir()  # the step under way was saved, however few there were

    done = medvista(["demo", *SMALL, "--out", out])
    assert done.returncode == 0, done.stderr
    said = lines_of(done.stderr)
    assert list(said) == STAGES
    assert [stage for stage in STAGES if said[stage] == "done before"] == ["data"]
    assert (out / "report.html").is_file()
    assert "no claim of medical skill" in done.stdout

    done = medvista(["demo", *SMALL, "--out", out, "--json", "learner.lr=2e-4"])  # SFT does not depend on it
    assert done.returncode == 0, done.stderr
    said = lines_of(done.stderr)
    assert [stage for stage in STAGES if said[stage] == "done before"] == ["data", "sft_tools", "eval-sft_tools"]
    summary = json.loads(done.stdout)
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["mode"] == "local"
    assert set(summary["accuracy"]) == {"sft_tools", "rl_tools"}

    done = medvista(["demo", *SMALL, "--out", out, "--fresh"])
    assert done.returncode == 0, done.stderr
    assert "done before" not in done.stderr
