"""The wheel, installed bare into a clean environment: the gym works without torch, Ray and transformers."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

HEAVY = ("ray", "torch", "vllm", "transformers", "fastapi")
PLAY = f"""
import sys
import medvista_ray, medvista_ray.envs, medvista_ray.cli.main
assert not (loaded := [name for name in {HEAVY} if name in sys.modules]), loaded

import gymnasium
env = gymnasium.make("medvista/MedicalVQA-v0")
observation, info = env.reset(seed=1)
assert observation["images"], "an episode begins with an image"
call = '<think>Look closer.</think><tool_call>{{"name": "zoom", "arguments": {{"bbox": [0, 0, 500, 500]}}}}</tool_call>'
observation, reward, terminated, truncated, info = env.step(call)
assert info["tool_failure"] is None and observation["images"], info
assert (reward, terminated, truncated) == (0.0, False, False)
_, reward, terminated, truncated, info = env.step("<think>I see it.</think><answer>A</answer>")
assert terminated and not truncated and reward >= 1.0, (reward, info)
env.close()
"""


def run(*command: str | Path, code: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command and check its exit code."""
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Path:
    """Build the wheel as pip would."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, checkout)
    (path,) = folder.glob("medvista_ray-*.whl")
    return path


@pytest.fixture(scope="module")
def bin_path(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """Install the wheel, without any extra, into an environment of its own."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(folder, with_pip=True)
    run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    return folder / "bin"


def test_the_wheel_holds_every_file_of_the_package(wheel: Path, checkout: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = checkout / "medvista_ray"
    wanted = {path.relative_to(checkout).as_posix() for path in package.rglob("*") if path.is_file()}
    wanted |= {f"medvista_ray/configs/{path.name}" for path in (checkout / "configs").glob("*.yaml")}
    wanted = {name for name in wanted if "__pycache__" not in name}
    assert {"medvista_ray/py.typed", "medvista_ray/data/manifest.json"} <= wanted
    assert {"medvista_ray/policy/tiny_base/model.safetensors", "medvista_ray/viewer/report.html.j2"} <= wanted
    assert wanted <= inside
    assert not {name.split("/")[0] for name in inside} - {"medvista_ray", wheel.name.rsplit("-", 3)[0] + ".dist-info"}


def test_an_episode_plays_in_a_bare_environment(bin_path: Path, tmp_path: Path) -> None:
    run(bin_path / "python", "-c", PLAY, cwd=tmp_path)
    have = run(bin_path / "python", "-m", "pip", "list", "--format", "freeze").stdout.lower()
    assert not [name for name in HEAVY if f"\n{name}==" in have]


def test_the_command_works_and_says_what_the_demo_needs(bin_path: Path, tmp_path: Path) -> None:
    assert "demo" in run(bin_path / "medvista", "--help").stdout
    run(bin_path / "python", "-m", "medvista_ray", "--version")
    for arguments in (["demo"], ["demo", "--local"], ["demo", "--quick"]):
        done = run(bin_path / "medvista", *arguments, code=2, cwd=tmp_path)
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert "torch" in done.stderr
        assert "pip install 'medvista-ray[demo]'" in done.stderr
    assert not list(tmp_path.iterdir())
    config = run(
        bin_path / "python",
        "-c",
        "from medvista_ray.recipes.demo import demo_config_paths as p; print(p(quick=True)[0])",
    )
    assert run(bin_path / "medvista", "check-config", config.stdout.strip()).stdout.startswith("run_name: demo\n")
