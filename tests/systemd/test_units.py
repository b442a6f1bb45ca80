"""The units as they are installed: what systemd itself says of them, and what they promise."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support import ROOT

UNITS = ROOT / "systemd"
pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze"
)


def systemd(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, words)), capture_output=True, text=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A file system in which the node is installed."""
    units = tmp_path / "usr/lib/systemd/system"
    program = tmp_path / "opt/edge-node/bin/edge-run"
    for folder in (units, program.parent, tmp_path / "etc"):
        folder.mkdir(parents=True)
    shutil.copy(UNITS / "edge-run.service", units)
    shutil.copytree("/usr/lib/systemd/system", units, dirs_exist_ok=True, symlinks=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return tmp_path


def test_systemd_finds_nothing_to_say(root: Path) -> None:
    """It warns of unknown keys on stderr and still exits 0."""
    done = systemd("systemd-analyze", "verify", "--man=no", f"--root={root}", "edge-run.service")
    said = [line for line in done.stderr.splitlines() if "edge-run" in line]
    assert said == []
    assert done.returncode == 0, done.stderr
    path = root / "usr/lib/systemd/system/edge-run.service"
    path.write_text(path.read_text().replace("WatchdogSec", "WatchdogSeconds"))
    done = systemd("systemd-analyze", "verify", "--man=no", f"--root={root}", "edge-run.service")
    assert "WatchdogSeconds" in done.stderr, "and would have said it"


def test_exposure_is_at_most_1_6(root: Path) -> None:
    unit = root / "usr/lib/systemd/system/edge-run.service"
    done = systemd("systemd-analyze", "security", "--offline=true", "--threshold=16", unit)
    level = re.search(r"Overall exposure level for edge-run\.service: ([\d.]+)", done.stdout)
    assert level is not None, done.stderr
    assert float(level[1]) <= 1.6
    assert done.returncode == 0


def test_no_directive_is_newer_than_jetpacks_systemd() -> None:
    """249 knows neither LoadCredentialEncrypted (250) nor RestartSteps and RestartMaxDelaySec (254)."""
    text = (UNITS / "edge-run.service").read_text()
    for newer in (
        "LoadCredentialEncrypted",
        "RestartSteps",
        "RestartMaxDelaySec",
        "ImportCredential",
    ):
        assert newer not in text


def test_users_and_folders_are_made_twice_without_complaint(root: Path) -> None:
    for name, tool in (("sysusers", "systemd-sysusers"), ("tmpfiles", "systemd-tmpfiles")):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
        more = ["--create"] if name == "tmpfiles" else []
        for _ in range(2):
            done = systemd(tool, *more, f"--root={root}", UNITS / f"edge-node.{name}.conf")
            assert done.returncode == 0, done.stderr
    assert "edge-node" in (root / "etc/passwd").read_text()
    assert (root / "etc/edge-node").is_dir()
