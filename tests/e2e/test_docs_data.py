"""Every command of the page on data, in its order, on miniatures of the data sets that it names."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from command_line import make_environment
from miniatures import WRITERS

from medvista_ray.data.folder import FolderTaskSource

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_commands_of_the_page_run_in_their_order(tmp_path: Path) -> None:
    commands = "".join(BLOCK.findall((ROOT / "docs" / "data.md").read_text()))
    assert {line.split()[2] for line in commands.splitlines() if line.startswith("medvista data")} >= {
        *("list", "show", "prepare", "stats", "preview")
    }
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for name, write in WRITERS.items():
        write(tmp_path / "downloads" / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=tmp_path,
        env=make_environment({"PATH": path}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for folder in ("my_data", "my_shapes", "my_vqa_rad", "my_slake", "my_path_vqa", "my_dicom", "my_masks"):
        for split in ("train", "held_out"):
            assert FolderTaskSource(tmp_path / folder, split)[0].task.question
    assert (tmp_path / "my_masks" / "contact.png").is_file()
