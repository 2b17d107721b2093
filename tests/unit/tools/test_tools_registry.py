"""What is no name of a tool is refused in one line, before a process starts."""

import pytest

from medvista_ray.envs.medical_vqa import MedicalVQAEnv
from medvista_ray.errors import ConfigError
from medvista_ray.tools.registry import load_tool
from medvista_ray.tools.runner import make_tool_runner
from medvista_ray.tools.zoom import Zoom

MODULE = """
from medvista_ray.tools.base import Tool
from medvista_ray.tools.zoom import Zoom

class NoRun(Tool):
    name, description, parameters = "no_run", "Lacks run.", {"type": "object"}

class WantsArguments(Zoom):
    def __init__(self, level):
        self.level = level
"""


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("registry_pack:NoRun", "'registry_pack:NoRun' has no run: write that method"),
        ("registry_pack:WantsArguments", "cannot be made without arguments: .*level"),
        ("__main__:Hi", r"into a module that workers can import, and name it 'pkg\.module:Hi'"),
        (Zoom, r"not the class Zoom: write 'medvista_ray\.tools\.zoom:Zoom'"),
        (Zoom(), "not a Zoom"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_tool_is_refused(spec, message, tmp_path, monkeypatch):
    (tmp_path / "registry_pack.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=message) as error:
        load_tool(spec)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=message):
        make_tool_runner([spec], timeout_s=5)


def test_a_class_of_a_notebook_is_sent_to_a_module():
    with pytest.raises(ConfigError, match="not the class Hi: put the class into a module that workers can import"):
        load_tool(type("Hi", (Zoom,), {"__module__": "__main__"}))


def test_an_env_refuses_it_too():
    from medvista_ray.config.schema import EnvConfig

    with pytest.raises(ConfigError, match=r"pkg\.module:Class"):
        MedicalVQAEnv(config=EnvConfig(tools=(Zoom,)))
    with pytest.raises(ConfigError, match="a module that workers can import"):
        MedicalVQAEnv(config=EnvConfig(tools=("__main__:Hi",)))
