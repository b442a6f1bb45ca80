"""A root file system with a JetPack's marks, a card's image around it, and a small package."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

from support.paths import ROOT

os.environ["PATH"] += os.pathsep + "/usr/sbin"  # where Debian puts the file systems' tools
TOOLS = ("sfdisk", "mke2fs", "debugfs", "e2fsck", "dpkg-deb", "ssh-keygen")
needs_tools = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in TOOLS),
    reason=f"needs {', '.join(TOOLS)} (Debian: fdisk e2fsprogs dpkg openssh-client)",
)

STATUS = """\
Package: dpkg
Status: install ok installed
Architecture: {architecture}
Version: 1.21.1ubuntu2.3

Package: python3
Status: install ok installed
Architecture: {architecture}
Version: 3.10.6-1~22.04

Package: openssl
Status: install ok installed
Architecture: {architecture}
Version: 3.0.2-0ubuntu1

Package: removed
Status: deinstall ok config-files
Architecture: {architecture}
Version: 1

"""
TENSORRT = """\
Package: python3-libnvinfer
Status: install ok installed
Architecture: arm64
Version: 10.3.0.30-1+cuda12.5

Package: network-manager
Status: install ok installed
Architecture: arm64
Version: 1.36.6-0ubuntu2

"""
RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: x\n"


def root(folder: Path, architecture: str = "arm64", jetson: bool = True) -> Path:
    """What edge-flash looks at, and little more."""
    files = {
        "etc/passwd": "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/:/usr/sbin/nologin\n",
        "etc/shadow": "root:*:19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\n",
        "etc/group": "root:x:0:\nshadow:x:42:\nsudo:x:27:\nvideo:x:44:\n",
        "etc/gshadow": "root:*::\nshadow:*::\nsudo:*::\nvideo:*::\n",
        "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 tegra-ubuntu\n",
        "etc/hostname": "tegra-ubuntu\n",
        "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
        "var/lib/dbus/machine-id": "0123456789abcdef0123456789abcdef\n",
        "etc/ssh/ssh_host_ed25519_key": "the same on every card\n",
        "var/lib/systemd/random-seed": "the same on every card\n",
        "var/lib/systemd/credential.secret": "the same on every card\n",
        "var/lib/NetworkManager/secret_key": "the same on every card\n",
        "etc/ssh/sshd_config.d/README": "",
        "etc/sudoers.d/README": "",
        "etc/systemd/system/README": "",
        "usr/bin/bash": "",
        "usr/share/zoneinfo/Europe/Berlin": "TZif2",
        "usr/share/zoneinfo/America/Port_of_Spain": "TZif2",
        "usr/lib/systemd/system/nv-oem-config.service": "[Service]\n",
        "usr/lib/systemd/system/multi-user.target": "[Unit]\n",
        "var/lib/dpkg/status": STATUS.format(architecture=architecture)
        + (TENSORRT if jetson else ""),
    }
    if jetson:
        files["etc/nv_tegra_release"] = RELEASE
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "etc/systemd/system/default.target").symlink_to(
        "/lib/systemd/system/nv-oem-config.target"
    )
    return folder


def image(path: Path, content: Path, mib: int = 24, name: str = "APP") -> Path:
    """A GPT image as an SD card's: a small partition, and the root one, whose number is 1."""
    size = mib * 2048
    with path.open("wb") as out:
        out.truncate((mib + 4) * 2**20)
    table = (
        f"label: gpt\n1: start=4096, size={size}, name={name}\n2: start=2048, size=2048, name=esp\n"
    )
    subprocess.run(["sfdisk", "--quiet", str(path)], input=table, text=True, check=True)
    plain = path.with_suffix(".ext4")
    with plain.open("wb") as out:
        out.truncate(size * 512)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(content), str(plain)], check=True)
    with path.open("r+b") as out, plain.open("rb") as source:
        out.seek(4096 * 512)
        shutil.copyfileobj(source, out)
    plain.unlink()
    return path


def rename_second_partition(image: Path, name: bytes) -> None:
    """Give a GPT image's second partition a name of these bytes, in both copies of the table."""
    data = bytearray(image.read_bytes())
    for header in (512, len(data) - 512):
        (first,) = struct.unpack_from("<Q", data, header + 72)
        count, size = struct.unpack_from("<II", data, header + 80)
        table = slice(first * 512, first * 512 + count * size)
        entry = table.start + size + 56
        data[entry : entry + 72] = name.ljust(72, b"\0")
        struct.pack_into("<I", data, header + 88, zlib.crc32(data[table]))
        struct.pack_into("<I", data, header + 16, 0)
        struct.pack_into("<I", data, header + 16, zlib.crc32(data[header : header + 92]))
    image.write_bytes(data)


def package(folder: Path, depends: str = "python3 (>= 3.10), openssl | libressl") -> Path:
    """Fields and the few files that edge-flash reads; dpkg-deb packs it."""
    tree = folder / "tree"
    control = (
        "Package: edge-node\nVersion: 0.1.0\nArchitecture: arm64\nMaintainer: a <a@example.org>\n"
        f"Depends: {depends}\nDescription: a classroom node\n"
    )
    files = {
        "DEBIAN/control": control,
        "usr/lib/edge-node/bootstrap": (ROOT / "systemd/bootstrap").read_text(),
        "usr/lib/systemd/system/edge-provision.service": (
            ROOT / "systemd/edge-provision.service"
        ).read_text(),
        "usr/share/edge-node/requirements-3.10.txt": "",
        "usr/share/edge-node/requirements-3.12.txt": "",
    }
    for name, text in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    deb = folder / "edge-node_0.1.0_arm64.deb"
    subprocess.run(
        ["dpkg-deb", "--build", "--root-owner-group", str(tree), str(deb)],
        check=True,
        capture_output=True,
    )
    return deb
