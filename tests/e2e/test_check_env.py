"""`medvista check-env` over every registered env, and over one that fails."""

import json
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["MedicalVQA", "InteractiveSegmentation", "Grounding"])
def test_a_registered_env_passes(medvista, name: str) -> None:
    done = medvista(["check-env", f"medvista/{name}-v0", "--json", "--episodes", "60"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(check["holds"] for check in json.loads(done.stdout)["checks"])


def test_a_leak_is_named_and_fails(medvista, tmp_path: Path) -> None:
    (tmp_path / "leaky.py").write_text(
        "from medvista_ray.envs.medical_vqa import MedicalVQAEnv\n"
        "class Leaky(MedicalVQAEnv):\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        observation, info = super().reset(seed=seed, options=options)\n"
        "        return observation, {**info, 'where': self._episode.reference.boxes.tolist()}\n"
    )
    done = medvista(["check-env", "leaky:Leaky", "--episodes", "60"], cwd=tmp_path)
    assert done.returncode == 1
    assert "FAIL  no label leaves" in done.stdout
    assert "the reference came out" in done.stdout
    assert "fails 1 of" in done.stderr


@pytest.mark.parametrize("target", ["no_such_module:Env", "medvista/NoSuchEnv-v0", "json:no_such_name"])
def test_a_target_that_is_none_is_wrong_use(medvista, target: str) -> None:
    done = medvista(["check-env", target])
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
