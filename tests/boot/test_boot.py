"""From a blank card to a publishing node, the README's way to the letter, on an emulated arm64
computer: authority, broker, image, card, first boot with the power cut in it, counts over mutual TLS,
the power cut again. `make test-boot`; it takes a quarter of an hour, and its report is kept beside
this file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import CLIP, ROOT, Mosquitto

os.environ["PATH"] += os.pathsep + "/usr/sbin"

import machine
from machine import Machine, say

pytestmark = [
    pytest.mark.boot,
    pytest.mark.skipif(
        os.getuid() != 0, reason="needs root (debootstrap, a loop device for a card)"
    ),
    pytest.mark.skipif(bool(machine.lacking()), reason=f"needs {' '.join(machine.lacking())}"),
]

NODE = "north/room-12/cam-1"
WINDOW_SECONDS = 5.0
REPORT = Path(__file__).with_name("last-run.txt")
NODE_YAML = f"""\
node: {{site: north, room: room-12, name: cam-1}}
camera: {{source: "loop:/srv/classroom.mp4"}}
window: {{seconds: {WINDOW_SECONDS}}}
privacy: {{legal_basis: "none: a test with a clip of public-domain pictures"}}
broker: {{url: "mqtts://10.0.2.2:PORT"}}
"""


def flash(*words: object, cwd: Path) -> str:
    """edge-flash as the technician calls it."""
    done = subprocess.run(
        [ROOT / ".venv/bin/edge-flash", *map(str, words)], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Ear:
    """mosquitto_sub with the school's server's certificate."""

    def __init__(self, folder: Path, broker: Mosquitto, certificates: Path) -> None:
        self._file = folder / "heard.txt"
        command = ["mosquitto_sub", "-h", "127.0.0.1", "-p", str(broker.port), "-v", "-q", "1"]
        command += ["-t", "edge/v1/#", "--cafile", str(certificates / "ca.pem")]
        command += ["--cert", str(certificates / "server.pem")]
        command += ["--key", str(certificates / "server.key")]
        with self._file.open("wb") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)

    def all(self, kind: str) -> list[dict[str, Any]]:
        """What came on one topic of the node, in order."""
        topic = f"edge/v1/{NODE}/{kind} "
        lines = self._file.read_text().splitlines()
        return [json.loads(line.removeprefix(topic)) for line in lines if line.startswith(topic)]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A card: a loop device over a file, larger than the image."""
    card = tmp_path / "card"
    with card.open("wb") as out:
        out.truncate(machine.CARD_MIB * 2**20)
    device = subprocess.run(
        ["losetup", "--find", "--show", str(card)], check=True, capture_output=True, text=True
    ).stdout.strip()
    yield device, card
    subprocess.run(["losetup", "--detach", device], check=False)


def node_package() -> Path:
    found = sorted((ROOT / "dist").glob("edge-node_*_arm64.deb"))
    assert found, "no package in dist; run make deb"
    return found[-1]


def counted(ear: Ear) -> list[dict[str, Any]]:
    return [c for c in ear.all("counts") if c["counts"] is not None]


def test_a_blank_card_becomes_a_publishing_node(tmp_path: Path, loop: tuple[str, Path]) -> None:
    started = time.monotonic()
    device, card = loop
    package = node_package()
    base = machine.base_image(tmp_path / "base.img", CLIP)

    # The school's authority and its broker.
    flash("ca", "init", "authority", "--school", "North School", cwd=tmp_path)
    flash("ca", "broker", "authority", "10.0.2.2", "127.0.0.1", cwd=tmp_path)
    flash("ca", "server", "authority", cwd=tmp_path)
    at = tmp_path / "certificates"
    from edge.watch.broker import files

    for name, text in files(str(at / "broker"), 8883, "server").items():
        (at / "broker" / name).write_text(text)
    own = f"persistence true\npersistence_location {tmp_path}/\nlog_dest stderr\n"
    configuration = (at / "broker/edge.conf").read_text().replace("# crlfile", "crlfile")
    broker = Mosquitto(tmp_path, own, configuration, listener="listener 8883")
    ear = Ear(tmp_path, broker, at / "server")

    # The node's image, onto a card.
    (tmp_path / "node.yaml").write_text(NODE_YAML.replace("PORT", str(broker.port)))
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True
    )
    said = flash(
        *("image", base, "--node", "node.yaml", "--out", "node.img", "--ca", "authority", "--cpu"),
        *("--package", package, "--ssh-key", "key.pub"),
        cwd=tmp_path,
    )
    say(said.splitlines()[0])
    flash("write", "node.img", device, "--yes", cwd=tmp_path)
    subprocess.run(["losetup", "--detach", device], check=True)
    say("the card is written and read back")

    node = Machine(card, tmp_path / "console.txt")
    try:
        # First boot, and the power goes in the middle of installing.
        node.power_on()
        node.wait("first boot installs", lambda: "install: edge-node_" in node.shown(), 6)
        time.sleep(20)
        assert "install: done" not in node.shown(), "the cut came too late to mean anything"
        node.cut_power()
        cut_installing = len(node.shown().splitlines())
        say("POWER CUT 1: while the package was installed")

        node.power_on()
        node.wait("first boot is done", lambda: "run: starting edge-run" in node.shown(), 25)
        node.wait("counts arrive", lambda: len(counted(ear)) >= 6, 15)
        steps = [s["reason"] for s in ear.all("status") if "first boot" in (s.get("reason") or "")]
        assert any("check" in step for step in steps), "the steps are told on status"

        # Running, and the power goes again.
        before = counted(ear)
        node.cut_power()
        say("POWER CUT 2: while it counted")
        deadline = time.monotonic() + 60
        while ear.all("status")[-1]["state"] != "lost":
            assert time.monotonic() < deadline, "the broker did not notice"
            time.sleep(0.5)
        say("the broker says lost")
        node.power_on()
        node.wait("counts arrive again", lambda: len(counted(ear)) >= len(before) + 4, 10)
        assert ear.all("status")[-1]["state"] == "online"
    finally:
        node.cut_power()
        ear.close()
        broker.stop()

    heard = ear.all("counts")
    logs = {c["log"] for c in heard}
    assert len(logs) == 1, "one outbox through both cuts"
    seqs = sorted({c["seq"] for c in heard})
    assert seqs == list(range(1, len(seqs) + 1)), "no reading is missing"
    assert all(7 <= c["faces"]["mean"] <= 9 for c in counted(ear)), (
        "the clip has seven to nine people"
    )
    assert all(c["window_seconds"] == WINDOW_SECONDS for c in heard)
    assert all(c["start"] > "2026" for c in heard), "the clock came up where the card was flashed"
    info = ear.all("info")[-1]
    write_report(package, node, ear, info, cut_installing, time.monotonic() - started)


def write_report(
    package: Path, node: Machine, ear: Ear, info: dict[str, Any], cut: int, seconds: float
) -> None:
    """What is kept in the repository: commit, package, counts that arrived, both cuts."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.strip()
    console = [
        re.sub(r"^.*?(edge-node: )", r"\1", line)
        for line in node.shown().splitlines()
        if "edge-node: " in line
    ]
    first = sum("edge-node: " in line for line in node.shown().splitlines()[:cut])
    console.insert(first, "--- POWER CUT 1, while the package was installed ---")
    second = max(n for n, line in enumerate(console) if "making ready" in line)
    console.insert(second, "--- POWER CUT 2, while it counted ---")
    heard = ear.all("counts")
    shown = [
        f"seq {c['seq']:3} {c['start']} faces {c['faces']} counts {json.dumps(c['counts'])}"
        for c in [*heard[:8], *heard[-4:]]
    ]
    text = [
        "make test-boot: a blank card to a publishing node, on qemu-system-aarch64 (TCG, two cores)",
        f"commit {commit}",
        f"package {package.name} sha256 {hashlib.sha256(package.read_bytes()).hexdigest()}",
        f"node {NODE}: backend {info['model']['backend']} {info['model']['precision']}, "
        f"{json.dumps(info['versions'])}",
        f"took {seconds / 60:.0f} minutes",
        "",
        f"readings that arrived over mutual TLS: {len(heard)} of one log, seq 1 to {heard[-1]['seq']}, "
        "none missing; the first eight and the last four:",
        *shown,
        "",
        "status:",
        *[f"{s['state']:9} {s.get('reason') or ''}" for s in ear.all("status")],
        "",
        "console:",
        *console,
    ]
    REPORT.write_text("\n".join(line.rstrip() for line in text) + "\n")
    say(f"report: {REPORT.name}")
