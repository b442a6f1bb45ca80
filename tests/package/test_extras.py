"""Each extra by itself in an environment of its own: `make test-extras`, by hand, since it downloads.

`tests/edge/base/test_commands.py` tells the same from what is installed, within seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge.base.commands import MODULES
from edge.watch.store import Store
from support.paths import ROOT

tomllib = pytest.importorskip("tomllib", reason="reads pyproject.toml: Python 3.11 has it")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SHORT = ["--camera", "demo/pictures", "--broker", "-", "--window", "1", "--min-group", "1"]
# The shortest real job of each extra's own; of the base install and those that no command is for, that
# the node says in one line what it lacks.
JOBS = {
    "node": ["edge-run", *SHORT],
    "demo": ["edge-run", *SHORT],
    "train": ["edge-bench", "--faces", "1", "--frames", "24"],
    "tensorboard": ["edge-bench", "--faces", "1", "--frames", "24"],
    "flash": ["edge-flash", "release", "key", "{tmp}/key"],
    "watch": ["edge-watch", "forget", "--record", "{tmp}/x.sqlite", "--older-than", "30"],
    "analysis": ["edge-watch", "export", "--record", "{tmp}/x.sqlite", "--out", "{tmp}/days"],
}
# What register-python-argcomplete's function tells a command whose line is being typed.
TYPED = {
    "COMP_LINE": "edge-run --cam",
    "COMP_POINT": "14",
    "COMP_TYPE": "9",
    "_ARGCOMPLETE": "1",
    "_ARGCOMPLETE_IFS": "\n",
    "_ARGCOMPLETE_SHELL": "bash",
}
CPU_TORCH = "https://download.pytorch.org/whl/cpu"
LACKS = "is not installed; install the '"


def installed(extra: str, folder: Path) -> Path:
    """Install the kit with one extra; returns the folder of its commands."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    target = f"{ROOT}[{extra}]" if extra else str(ROOT)
    pip = [folder / "bin/python", "-m", "pip", "install", "--quiet"]
    pip += ["--constraint", ROOT / "constraints.txt"]
    if extra in ("train", "tensorboard"):  # as distill/README.md says: without CUDA
        subprocess.run([*pip, "torch", "--index-url", CPU_TORCH], check=True)
    subprocess.run([*pip, target], check=True)
    return folder / "bin"


@pytest.mark.package
@pytest.mark.parametrize("extra", ["", *PROJECT["optional-dependencies"]])
def test_an_extra_alone_helps_works_or_says_what_it_lacks(extra: str, tmp_path: Path) -> None:
    store = Store(f"{tmp_path}/x.sqlite")
    store.migrate()
    store.close()
    commands = installed(extra, tmp_path / "venv")
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    env.pop("PYTHONPATH", None)

    def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [commands / words[0], *words[1:]],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**env, **more},
        )

    for name in MODULES:
        done = run(name, "--help")
        assert "Traceback" not in done.stderr, done.stderr
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1]
            assert done.returncode == 1
            assert last.startswith(f"{name}: "), last
            assert LACKS in last
        else:
            assert "example:" in done.stdout
    if extra in JOBS:
        done = run(*(word.format(tmp=tmp_path) for word in JOBS[extra]))
        assert done.returncode == 0, done.stderr
    else:
        done = run("edge-run", *SHORT)
        assert (done.returncode, LACKS in done.stderr) == (1, True), done.stderr
        assert "Traceback" not in done.stderr
    if extra == "completion":
        answer = tmp_path / "answer"
        answer.write_text("")
        done = run("edge-run", **TYPED, _ARGCOMPLETE_STDOUT_FILENAME=str(answer))
        assert (done.returncode, answer.read_text().split()) == (0, ["--camera"]), done.stderr
