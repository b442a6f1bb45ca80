"""The units as they are installed: what systemd itself says of them, and what they promise."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support.paths import ROOT

UNITS = ROOT / "systemd"
OURS = sorted(p.name for p in UNITS.glob("edge-*") if p.suffix in (".service", ".timer"))
COMMANDS = ("edge-run", "edge-provision", "edge-update", "export-engine", "python")
pytestmark = [
    pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze"),
    pytest.mark.process,
]


def systemd(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, words)), capture_output=True, text=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A file system in which the node is installed."""
    units = tmp_path / "usr/lib/systemd/system"
    commands = [tmp_path / "opt/edge-node/current/bin" / name for name in COMMANDS]
    commands += [tmp_path / "usr/lib/edge-node/bootstrap", tmp_path / "bin/sh"]
    for folder in (units, tmp_path / "etc"):
        folder.mkdir(parents=True)
    for path in sorted(UNITS.glob("edge-*.service")) + sorted(UNITS.glob("edge-*.timer")):
        shutil.copy(path, units)
    shutil.copytree("/usr/lib/systemd/system", units, dirs_exist_ok=True, symlinks=True)
    for program in commands:
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("unit", OURS)
def test_systemd_finds_nothing_to_say(root: Path, unit: str) -> None:
    """It warns of unknown keys on stderr and still exits 0."""
    done = systemd("systemd-analyze", "verify", "--man=no", f"--root={root}", unit)
    said = [line for line in done.stderr.splitlines() if "edge-" in line]
    assert said == []
    assert done.returncode == 0, done.stderr


def test_systemd_would_have_said_it(root: Path) -> None:
    path = root / "usr/lib/systemd/system/edge-run.service"
    path.write_text(path.read_text().replace("WatchdogSec", "WatchdogSeconds"))
    done = systemd("systemd-analyze", "verify", "--man=no", f"--root={root}", "edge-run.service")
    assert "WatchdogSeconds" in done.stderr


@pytest.mark.parametrize("name", ["edge-run.service", "edge-engine.service"])
def test_exposure_is_at_most_1_6(root: Path, name: str) -> None:
    unit = root / "usr/lib/systemd/system" / name
    done = systemd("systemd-analyze", "security", "--offline=true", "--threshold=16", unit)
    level = re.search(rf"Overall exposure level for {re.escape(name)}: ([\d.]+)", done.stdout)
    assert level is not None, done.stderr
    assert float(level[1]) <= 1.6
    assert done.returncode == 0


def test_no_crash_of_a_service_leaves_its_memory_on_the_disk() -> None:
    """A picture, a password: LimitCORE binds files and systemd-coredump, and the watchdog's default
    signal asks for a dump."""
    for name in OURS:
        text = (UNITS / name).read_text()
        assert name.endswith(".timer") or "\nLimitCORE=0\n" in text, name
    assert "\nWatchdogSignal=SIGKILL\n" in (UNITS / "edge-run.service").read_text()
    assert "--property=LimitCORE=0" in (UNITS / "debian/edge-check").read_text()


def test_node_yaml_is_readable_for_its_service_alone() -> None:
    text = (UNITS / "edge-node.tmpfiles.conf").read_text()
    assert "\nz /etc/edge-node/node.yaml 0640 root edge-node -\n" in text
    assert (
        'install -m 0640 -g edge-node /dev/null "$SETTINGS.new"'
        in (UNITS / "debian/postinst").read_text()
    )


def test_no_directive_is_newer_than_jetpacks_systemd() -> None:
    """249 knows neither LoadCredentialEncrypted (250) nor RestartSteps and RestartMaxDelaySec (254)."""
    text = "".join((UNITS / name).read_text() for name in OURS)
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
