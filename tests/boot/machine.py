"""An arm64 computer to flash and to boot: Debian 12 made by debootstrap, run by QEMU's own emulation.

It stands in for a Jetson in all that processor, systemd, dpkg and network make; not in GPU and camera.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from support.brokers import free_port
from support.paths import ROOT

RELEASE = "bookworm"
# Where debootstrap's own default cannot be reached.
MIRROR = [url] if (url := os.environ.get("EDGE_TEST_MIRROR")) else []
PACKAGES = (
    *("systemd", "systemd-sysv", "systemd-timesyncd", "udev", "dbus", "iproute2", "fdisk"),
    *("linux-image-cloud-arm64", "initramfs-tools", "openssh-server", "python3", "openssl", "sudo"),
)
CACHE = Path(os.environ.get("EDGE_TEST_CACHE") or ROOT / "build" / "boot")
TOOLS = {
    "debootstrap": "debootstrap",
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-aarch64-static": "qemu-user-static",
    "mke2fs": "e2fsprogs",
    "sfdisk": "fdisk",
    "losetup": "mount",
    "mosquitto": "mosquitto",
    "mosquitto_sub": "mosquitto-clients",
}
ROOT_MIB, CARD_MIB = 2304, 4096  # of the partition as published, and of the card it is written to
PART_START = 4096 * 512


def lacking() -> list[str]:
    """Debian packages that are needed and not here."""
    return [package for tool, package in TOOLS.items() if shutil.which(tool) is None]


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S', time.gmtime())}] {text}", flush=True)


def root_folder() -> Path:
    """Debian's root file system, kept from run to run."""
    folder = CACHE / "root"
    if (folder / "complete").exists():
        return folder
    say(f"debootstrap {RELEASE} arm64 (minutes)")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [
            *("debootstrap", "--arch=arm64", "--variant=minbase"),
            *(f"--include={','.join(PACKAGES)}", RELEASE, str(folder), *MIRROR),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (folder / "complete").touch()
    return folder


def base_image(path: Path, clip: Path) -> Path:
    """A card's image as a maker publishes it: a GPT whose partition APP holds the root file system,
    which also has the clip, in the camera's place."""
    folder = root_folder()
    (folder / "srv").mkdir(exist_ok=True)
    shutil.copy(clip, folder / "srv" / "classroom.mp4")
    with path.open("wb") as out:
        out.truncate((ROOT_MIB + 4) * 2**20)
    table = f"label: gpt\nstart={PART_START // 512}, size={ROOT_MIB * 2048}, name=APP\n"
    subprocess.run(["sfdisk", "--quiet", str(path)], input=table, text=True, check=True)
    say("packing the base image")
    subprocess.run(
        [
            *("mke2fs", "-q", "-t", "ext4", "-E", f"offset={PART_START}"),
            *("-d", str(folder), str(path), f"{ROOT_MIB}M"),
        ],
        check=True,
    )
    return path


class Machine:
    """The computer with a card in it. Its network is the host's loopback, as 10.0.2.2."""

    def __init__(self, card: Path, console: Path, key: Path) -> None:
        """key: the technician's, for SSH."""
        boot = root_folder() / "boot"
        self._kernel = next(boot.glob("vmlinuz-*"))
        self._initrd = next(boot.glob("initrd.img-*"))
        self._card, self.console, self._key = card, console, key
        self._ssh = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        console.touch()

    def power_on(self) -> None:
        # The clock of a board without a battery: decades ago.
        command = ["qemu-system-aarch64", "-machine", "virt", "-cpu", "cortex-a76", "-smp", "2"]
        command += ["-m", "3072", "-nographic", "-no-reboot", "-rtc", "base=2001-01-01"]
        command += ["-kernel", str(self._kernel), "-initrd", str(self._initrd), "-append"]
        command += ["root=/dev/vda1 rw console=ttyAMA0 systemd.show_status=0 quiet"]
        command += ["-drive", f"file={self._card},format=raw,if=virtio,cache=writethrough"]
        network = f"user,id=net,hostfwd=tcp:127.0.0.1:{self._ssh}-:22"
        command += ["-netdev", network, "-device", "virtio-net-pci,netdev=net,romfile="]
        with self.console.open("ab") as out:
            self._process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def cut_power(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def shell(self, command: str) -> str:
        """What a command of the technician's prints, over SSH; its failure is the test's."""
        say(f"$ {command}")
        ssh = ["ssh", "-i", str(self._key), "-p", str(self._ssh), "-o", "BatchMode=yes"]
        ssh += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        ssh += ["-o", "LogLevel=ERROR", "technician@127.0.0.1", command]
        done = subprocess.run(ssh, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    def power_off(self) -> None:
        """As a person would who has a shell."""
        assert self._process is not None
        self.shell("sudo systemctl poweroff --no-block")
        self._process.wait(timeout=180)

    def shown(self) -> str:
        """All that the console has shown since the first start."""
        return self.console.read_text(errors="replace")

    def wait(self, what: str, seen: Callable[[], object], minutes: float) -> None:
        """Until `seen` holds; the console's end is in the error where it never does."""
        deadline = time.monotonic() + 60 * minutes
        while not seen():
            end = "\n".join(self.shown().splitlines()[-25:])
            assert self.running(), f"the machine ended before {what}:\n{end}"
            assert time.monotonic() < deadline, f"no {what} within {minutes} min:\n{end}"
            time.sleep(0.5)
        say(what)
