"""From a blank card to a publishing node, the README's way to the letter, on an emulated arm64
computer: authority, broker, image, card, first boot with the power cut in it, counts over mutual TLS,
the power cut again, a signed update, the self-test by hand, and a purge that leaves nothing.

`make test-boot`; it takes half an hour, and its report is kept beside this file.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.paths import CLIP, ROOT

os.environ["PATH"] += os.pathsep + "/usr/sbin"

import edge
from boot import machine, report
from boot.machine import Machine, say
from boot.school import HOST, School, flash

pytestmark = [
    pytest.mark.boot,
    pytest.mark.skipif(os.getuid() != 0, reason="needs root (debootstrap, a loop device)"),
    pytest.mark.skipif(bool(machine.lacking()), reason=f"needs {' '.join(machine.lacking())}"),
]

NODE = "north/room-12/cam-1"
WINDOW_SECONDS = 10.0
NODE_YAML = f"""\
node: {{site: north, room: room-12, name: cam-1}}
camera: {{source: "loop:/srv/classroom.mp4"}}
# An emulated processor takes a second or more for a picture: every face counts at once.
detector: {{width: 320, height: 256}}
tracker: {{confirm_frames: 1, hold_seconds: 0.0}}
window: {{seconds: {WINDOW_SECONDS}, max_gap_seconds: 10.0}}
runtime: {{threads: 1}}
privacy: {{legal_basis: "safety: a trial with a clip of public-domain pictures"}}
broker: {{url: "mqtts://{HOST}:PORT"}}
update: {{url: URL, ca: /etc/edge-node/ca.pem}}
"""
LEFT_BY_NOBODY = (
    *("/etc/edge-node", "/opt/edge-node", "/usr/lib/edge-node", "/usr/share/edge-node"),
    *("/var/lib/edge-node", "/var/lib/edge-update", "/var/lib/private/edge-node"),
    *("/etc/systemd/system/edge-run.service.d", "/var/log/journal/*.edge-node"),
    *("/run/log/journal/*.edge-node", "/etc/apt/preferences.d/edge-node"),
    *("/etc/systemd/system/*.wants/edge-*", "/var/lib/systemd/timers/stamp-edge-*"),
)


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
    subprocess.run(["losetup", "--detach", device], check=False, capture_output=True)


def node_package() -> Path:
    found = ROOT / "dist" / f"edge-node_{edge.__version__}_arm64.deb"
    assert found.is_file(), "no package in dist; run make deb"
    return found


def make_card(folder: Path, device: str, school: School, package: Path) -> None:
    """node.yaml > image > card."""
    base = machine.base_image(folder / "base.img", CLIP)
    text = NODE_YAML.replace("PORT", str(school.broker.port)).replace("URL", school.update_url)
    (folder / "node.yaml").write_text(text)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")], check=True
    )
    said = flash(
        *("image", base, "--node", "node.yaml", "--out", "node.img", "--ca", "authority", "--cpu"),
        *("--package", package, "--ssh-key", "key.pub", "--release-key", "keys/release.pub"),
        cwd=folder,
    )
    say(said.splitlines()[0])
    flash("write", "node.img", device, "--yes", cwd=folder)
    subprocess.run(["losetup", "--detach", device], check=True)
    say("the card is written and read back")


def test_a_blank_card_becomes_a_publishing_node(tmp_path: Path, loop: tuple[str, Path]) -> None:
    device, card = loop
    package = node_package()
    school = School(tmp_path, NODE)
    story = report.Story(package, tmp_path / "console.txt")
    node = Machine(card, story.console, tmp_path / "key")
    try:
        make_card(tmp_path, device, school, package)

        node.power_on()
        node.wait("first boot installs", lambda: "install: edge-node_" in node.shown(), 6)
        time.sleep(20)
        assert "install: done" not in node.shown(), "the cut would come too late to mean anything"
        node.cut_power()
        story.mark("POWER CUT 1, while the package was installed")

        node.power_on()
        node.wait("first boot is done", lambda: "run: starting edge-run" in node.shown(), 30)
        node.wait("counts arrive", lambda: len(school.counted()) >= 6, 15)
        told = [
            s["reason"] for s in school.all("status") if "first boot" in (s.get("reason") or "")
        ]
        assert any("first boot, check" in step for step in told), "the steps are told on status"

        node.cut_power()
        story.mark("POWER CUT 2, while it counted")
        deadline = time.monotonic() + 60
        while school.state() != "lost":
            assert time.monotonic() < deadline, "the broker did not notice"
            time.sleep(0.5)
        before = len(school.counted())
        node.power_on()
        node.wait("counts arrive again", lambda: len(school.counted()) >= before + 4, 10)
        node.wait("online", lambda: school.state() == "online", 2)

        story.note(
            "edge-check, by hand", node.shell("sudo systemctl stop edge-run; sudo edge-check")
        )
        node.shell("sudo systemctl start edge-run")
        node.wait("online", lambda: school.state() == "online", 5)
        offered = school.offer_bundle()
        story.note(
            "edge-update",
            node.shell("sudo systemctl start edge-update && cat /var/lib/edge-update/last.json"),
        )
        node.wait(
            "the update serves",
            lambda: school.all("info")[-1]["model"]["bundle_sha256"] == offered,
            5,
        )
        assert node.shell("readlink /var/lib/edge-update/bundle").startswith("bundles/")

        story.note("what runs", node.shell("systemctl --no-pager status edge-run | head -12"))
        node.shell("sudo apt-get purge --yes edge-node")
        # As root, who may look everywhere.
        looked = f"ls -d {' '.join(LEFT_BY_NOBODY)} 2>/dev/null; getent passwd edge-node; true"
        left = node.shell(f"sudo sh -c '{looked}'")
        assert left.strip() == "", "a purge leaves nothing"
        story.note("what a purge left", left or "nothing")
        node.power_off()
    finally:
        node.cut_power()
        school.close()
    check_readings(school)
    story.write(school, NODE)


def check_readings(school: School) -> None:
    heard = school.all("counts")
    assert len({c["log"] for c in heard}) == 1, "one outbox through both cuts"
    numbers = sorted({c["seq"] for c in heard})
    assert numbers == list(range(1, len(numbers) + 1)), "no reading is missing"
    assert all(c["window_seconds"] == WINDOW_SECONDS for c in heard)
    assert all(c["start"] > "2026" for c in heard), "the clock came up where the card was flashed"
    # The clip has seven to nine people, of whom some hide behind others for a moment.
    seen = [c["faces"]["mean"] for c in school.counted() if c["quality"]["seen"] > 0.9]
    assert len(seen) > 5
    assert all(6.5 <= mean <= 9 for mean in seen)
