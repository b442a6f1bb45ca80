"""Every command with every extra alone: its help, a short real job, or the extra that it lacks."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections import defaultdict
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

from edge.base import commands
from edge.base.commands import EXTRAS, MODULES, advice
from edge.base.errors import BackendError
from edge.delivery.client import require_library
from edge.inference.backends.ort import OnnxRuntime
from edge.watch.store import Store
from support.paths import ROOT

tomllib = pytest.importorskip("tomllib", reason="reads pyproject.toml: Python 3.11 has it")
brought = importlib.import_module("support.only_extra").brought
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NODE = ("edge-run", "edge-watch", "edge-flash", "edge-provision", "edge-update")
LABORATORY = ("distill-eval", "export-engine", "export-bench", "edge-crops")
PICTURES = ("edge-bench", "edge-crowd")
TRAINING = ("distill-train", "distill-study", "export-model")
# Whose --help there is with an extra alone; the others say in one line what they lack.
HELPS = {
    "": NODE,
    "metrics": NODE,
    "watch": NODE,
    "analysis": NODE,
    "flash": NODE,
    "node": (*NODE, *LABORATORY, *PICTURES),
    "demo": (*NODE, *LABORATORY, *PICTURES),
    "train": tuple(MODULES),
    "tensorboard": tuple(MODULES),
}
SHORT = ["--camera", "demo/pictures", "--broker", "-", "--window", "1", "--min-group", "1"]
# The shortest real job of what an extra is for.
JOBS = {
    "node": ["edge-run", *SHORT],
    "train": ["edge-run", *SHORT],
    "demo": ["edge-run", *SHORT],
    "flash": ["edge-flash", "release", "key", "{tmp}/key"],
    "analysis": ["edge-watch", "export", "--record", "{tmp}/x.sqlite", "--out", "{tmp}/days"],
    "watch": ["edge-watch", "forget", "--record", "{tmp}/x.sqlite", "--older-than", "30"],
}


def run(extra: str, jobs: list[list[str]], state: Path) -> list[tuple[int, str]]:
    done = subprocess.run(
        [sys.executable, "-m", "support.only_extra", extra],
        input="".join(json.dumps(job) + "\n" for job in jobs),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "XDG_STATE_HOME": str(state)},
    )
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_each_command_of_the_project_starts_its_module() -> None:
    assert PROJECT["scripts"] == {
        name: f"edge.base.commands:{name.replace('-', '_')}" for name in MODULES
    }
    assert callable(commands.edge_run)
    with pytest.raises(AttributeError, match="no command edge-fly"):
        _ = commands.edge_fly


def test_every_package_that_the_project_asks_for_has_its_extra_named() -> None:
    owners = metadata.packages_distributions()
    named = {
        distribution.lower(): extra
        for package, extra in EXTRAS.items()
        for distribution in owners.get(package, ())
    }
    bringing = defaultdict(set)  # rich comes with two
    for extra, requirements in {
        "": PROJECT["dependencies"],
        **PROJECT["optional-dependencies"],
    }.items():
        for requirement in requirements:
            name = requirement.split("[")[0].split(">")[0].strip()
            if name != PROJECT["name"] and name in {
                d.lower() for ds in owners.values() for d in ds
            }:
                bringing[name].add(extra)
    assert {name for name, extras in bringing.items() if len(extras) > 1} == {"rich"}
    for name, extras in bringing.items():
        assert named[name] in extras, name


def test_what_no_extra_brings_is_a_defect_and_not_advice() -> None:
    assert advice(ModuleNotFoundError("x", name="edge.nothing")) is None
    line = advice(ModuleNotFoundError("x", name="torch.nn"))
    assert line == "torch is not installed; install the 'train' extra: pip install '.[train]'"
    assert "python3-opencv" in (advice(ModuleNotFoundError("x", name="cv2")) or "")


def test_what_every_installation_has_comes_with_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("paho.mqtt.client", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    for ask in (require_library, lambda: OnnxRuntime(Path("x.onnx"))):
        with pytest.raises(
            BackendError, match=r"is not installed.*install the kit again: pip inst"
        ):
            ask()


def test_who_wants_to_train_is_told_of_one_extra_and_not_of_one_after_the_other() -> None:
    missing = ModuleNotFoundError("x", name="cv2")
    for command in TRAINING:
        line = advice(missing, command)
        assert line == "cv2 is not installed; install the 'train' extra: pip install '.[train]'"
    assert "'node' extra" in (advice(missing, "distill-eval") or ""), "it reads a bundle with that"
    line = advice(ModuleNotFoundError("x", name="tensorboard"), "distill-train")
    assert line is not None
    assert "'tensorboard' extra" in line


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("extra", HELPS)
def test_with_one_extra_alone_a_command_helps_works_or_names_what_it_lacks(
    extra: str, tmp_path: Path
) -> None:
    if extra in ("train", "tensorboard") and find_spec("torch") is None:
        pytest.skip("torch is not installed here; `make test` has it")
    jobs = [[name, "--help"] for name in MODULES]
    store = Store(str(tmp_path / "x.sqlite"))
    store.migrate()
    store.close()
    if job := JOBS.get(extra):
        jobs.append([word.format(tmp=tmp_path) for word in job])
    for words, (code, last) in zip(jobs, run(extra, jobs, tmp_path), strict=True):
        if words[-1] != "--help" or words[0] in HELPS[extra]:
            assert code == 0, (words, last)
            continue
        assert code == 1, words
        assert last.startswith(f"{words[0]}: "), last
        wanted = "train" if words[0] in TRAINING else "node"
        assert f"is not installed; install the '{wanted}' extra" in last


def test_an_extra_brings_what_its_own_packages_need() -> None:
    assert {"numpy", "opencv-python-headless"} <= brought("node")
    assert "opencv-python-headless" not in brought("watch")
    assert {"pyarrow", "sqlalchemy"} <= brought("analysis"), "of the extra that it stands on"


def complete(line: str, folder: Path) -> list[str]:
    """What argcomplete's shell functions are given for a line whose end the cursor stands at."""
    answer = folder / "answer"
    answer.write_text("")
    command = line.split()[0]
    done = subprocess.run(
        [sys.executable, "-c", f"import edge.base.commands as c; c.start({command!r})"],
        cwd=ROOT,
        env={
            **os.environ,
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
            "COMP_TYPE": "9",
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_IFS": "\n",
            "_ARGCOMPLETE_SHELL": "bash",
            "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        },
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return [word.strip() for word in answer.read_text().splitlines()]


@pytest.mark.process
@pytest.mark.slow
def test_a_shell_completes_options_values_and_commands_within_a_command(tmp_path: Path) -> None:
    pytest.importorskip("argcomplete", reason="needs the 'completion' extra")
    for line, words in {
        "edge-run --cam": ["--camera"],
        "edge-run --backend o": ["ort"],
        "edge-flash im": ["image"],
        "edge-flash image --zo": ["--zone"],
        "edge-flash ca iss": ["issue"],
        "edge-watch simu": ["simulate"],
        "edge-watch simulate --nod": ["--nodes"],
    }.items():
        assert complete(line, tmp_path) == words, line
