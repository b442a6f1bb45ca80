"""The ext4 partition of a disk image, read and written in place, without root and without mounting it.

debugfs (e2fsprogs) works at the partition's offset: no loop device, no partition nodes, no kernel. What
was written is read back and compared, and e2fsck checks the result.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.base.errors import EdgeError
from edge.base.files import sha256, sha256_of
from edge.flash.tree import Absent, Entry, File, Folder, Kind, Link, with_parents

SECTOR = 512
# Also the folders that only root's PATH has.
SEARCH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
PACKAGES = {
    "sfdisk": "fdisk",
    "debugfs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "dpkg-deb": "dpkg",
}
# What debugfs's own command line takes without quoting.
SAFE_PATH = re.compile(r"/[A-Za-z0-9._@+:=~%/-]+")
KINDS: dict[str, Kind] = {"regular": "file", "directory": "folder", "symlink": "link"}


def tool_path(name: str) -> str:
    """Return the path of a tool; raises EdgeError naming the package that holds it."""
    found = shutil.which(name, path=SEARCH)
    if found is None:
        raise EdgeError(
            f"{name} is not installed; on Debian or Ubuntu: apt-get install {PACKAGES.get(name, name)}"
        )
    return found


def run_tool(name: str, *words: str, folder: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a tool and keep its answer, which may hold names in any encoding: of other people's packages,
    partitions, files. Raises EdgeError as `tool_path` does. folder: in which it runs."""
    return subprocess.run(
        [tool_path(name), *words],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        cwd=folder,
    )


@dataclass(frozen=True, slots=True)
class Partition:
    """An entry of the partition table. start and size in bytes."""

    number: int
    name: str
    start: int
    size: int


def partitions(image: Path) -> list[Partition]:
    """List a GPT image's partitions. Raises EdgeError without a GPT, or where the image is cut off."""
    done = run_tool("sfdisk", "--json", str(image))
    try:
        table = json.loads(done.stdout)["partitiontable"] if done.returncode == 0 else {}
    except (ValueError, KeyError):
        table = {}
    if table.get("label") != "gpt":
        with image.open("rb") as content:
            content.seek(SECTOR)
            signed = content.read(8) == b"EFI PART"
        # Where its end is missing, sfdisk falls back on the protective MBR.
        if signed:
            raise EdgeError(
                f"{image} is cut or damaged: its table does not fit it; unpack it again"
            )
        raise EdgeError(
            f"{image} is not a disk image with a GPT; give the .img of an SD card, unzipped"
        )
    sector = int(table.get("sectorsize", SECTOR))
    found = [
        Partition(number, p.get("name", ""), p["start"] * sector, p["size"] * sector)
        for number, p in enumerate(table.get("partitions", []), start=1)
    ]
    size = image.stat().st_size
    for part in found:
        if part.start + part.size > size:
            raise EdgeError(
                f"{image} ends before its partition {part.name or part.number} does ({size} of "
                f"{part.start + part.size} bytes); download or unpack it again"
            )
    return found


def root_partition(image: Path, name: str = "APP") -> Partition:
    """Find the root partition by its name in the table; raises EdgeError."""
    found = partitions(image)
    for part in found:
        if part.name == name:
            return part
    names = ", ".join(p.name or "-" for p in found) or "none"
    raise EdgeError(
        f"{image} has no partition named {name} (it has: {names}); give a JetPack SD card image, or "
        f"the name of its root partition with --partition"
    )


class Ext4:
    """The ext4 file system in a partition of an image; a `Tree`."""

    def __init__(self, image: Path, partition: Partition) -> None:
        """Open it; raises EdgeError where it is not ext4, or was not unmounted."""
        self.name, self._image = str(image), image
        self._where = f"{image.resolve()}?offset={partition.start}"
        stats = self._debugfs("stats -h")
        if "Filesystem features:" not in stats:
            raise EdgeError(f"{image}: partition {partition.name} holds no ext4 file system")
        features = re.findall(r"^Filesystem features: +(.*)$", stats, re.MULTILINE)[0].split()
        if "needs_recovery" in features or not re.search(r"Filesystem state: +clean\b", stats):
            raise EdgeError(
                f"{image} was not unmounted cleanly; take an image that never ran, or boot it and "
                f"shut it down"
            )

    def _debugfs(self, request: str) -> str:
        """Return the answer to one debugfs request, as text."""
        return self._debugfs_bytes(request).decode(errors="replace")

    def _debugfs_bytes(self, request: str) -> bytes:
        command = [tool_path("debugfs"), "-R", request, self._where]
        return subprocess.run(command, capture_output=True).stdout

    def _stat(self, path: str) -> dict[str, str]:
        """Return type, mode (octal), uid, gid and a link's target; empty where there is nothing."""
        if not SAFE_PATH.fullmatch(path):
            raise EdgeError(f"{self.name}: '{path}' holds what edge-flash writes no path with")
        text = self._debugfs(f"stat {path}")
        head = re.search(r"Type: (\w+) +Mode: +(\d+)", text)
        owner = re.search(r"User: +(\d+) +Group: +(\d+)", text)
        if head is None or owner is None:
            return {}
        target = re.search(r'Fast link dest: "(.*)"', text)
        return {
            "type": head[1],
            "mode": head[2],
            "uid": owner[1],
            "gid": owner[2],
            "target": target[1] if target else "",
        }

    def kind(self, path: str) -> Kind:
        return KINDS.get(self._stat(path).get("type", ""))

    def read(self, path: str) -> bytes | None:
        return self._debugfs_bytes(f"cat {path}") if self.kind(path) == "file" else None

    def names(self, path: str) -> list[str]:
        if self.kind(path) != "folder":
            return []
        rows = [line.split("/") for line in self._debugfs(f"ls -p {path}").splitlines()]
        return sorted(row[5] for row in rows if len(row) > 6 and row[5] not in (".", ".."))

    def free_bytes(self) -> int:
        stats = self._debugfs("stats -h")
        free = re.search(r"^Free blocks: +(\d+)$", stats, re.MULTILINE)
        size = re.search(r"^Block size: +(\d+)$", stats, re.MULTILINE)
        return int(free[1]) * int(size[1]) if free and size else 0

    def apply(self, entries: Sequence[Entry]) -> None:
        whole = with_parents(entries, self)
        with tempfile.TemporaryDirectory(prefix="edge-flash-") as folder:
            script = Path(folder, "script")
            script.write_text("\n".join(self._commands(whole, Path(folder))) + "\n")
            done = run_tool("debugfs", "-w", "-f", str(script), self._where, folder=folder)
        # It reports on stderr, below its own name, and exits 0.
        said = [line for line in done.stderr.splitlines() if not line.startswith("debugfs ")]
        if said or done.returncode:
            raise EdgeError(f"{self.name} takes not all: {(said or ['no reason given'])[0]}")
        self._verify(whole)

    def _commands(self, entries: Sequence[Entry], folder: Path) -> list[str]:
        """Return debugfs's commands; contents are put into `folder` under plain names."""
        lines: list[str] = []
        for number, entry in enumerate(entries):
            parent, _, name = entry.path.rpartition("/")
            lines.append(f"cd {parent or '/'}")
            if not isinstance(entry, Folder) and self.kind(entry.path) is not None:
                lines.append(f"rm {name}")
            if isinstance(entry, Absent):
                continue
            if isinstance(entry, Link):
                if not SAFE_PATH.fullmatch(entry.target):
                    raise EdgeError(f"{self.name}: a link to '{entry.target}' cannot be written")
                lines.append(f"symlink {name} {entry.target}")
                continue
            kind = 0o040000
            if isinstance(entry, File):
                kind = 0o100000
                source = folder / f"{number}"
                if isinstance(entry.content, bytes):
                    source.write_bytes(entry.content)
                else:
                    source.symlink_to(entry.content.resolve())
                lines.append(f"write {number} {name}")
            else:
                lines.append(f"mkdir {name}")
            lines += [
                f"sif {name} mode 0{kind | entry.mode:o}",
                f"sif {name} uid {entry.uid}",
                f"sif {name} gid {entry.gid}",
            ]
            if isinstance(entry, File) and entry.mtime is not None:
                lines.append(f"sif {name} mtime @{entry.mtime}")
        return lines

    def _verify(self, entries: Sequence[Entry]) -> None:
        """Read back what was written, the last entry of each path. Raises EdgeError."""
        for path, entry in {entry.path: entry for entry in entries}.items():
            found = self._stat(path)
            if isinstance(entry, Absent):
                right = not found
            elif isinstance(entry, Link):
                right = found.get("type") == "symlink" and (
                    len(entry.target) > 59 or found["target"] == entry.target
                )
            else:
                wanted = "file" if isinstance(entry, File) else "folder"
                right = (
                    KINDS.get(found.get("type", "")) == wanted
                    and int(found["mode"], 8) & 0o7777 == entry.mode
                    and (int(found["uid"]), int(found["gid"])) == (entry.uid, entry.gid)
                )
            if right and isinstance(entry, File):
                right = self._digest(path) == content_sha256(entry.content)
            if not right:
                raise EdgeError(
                    f"{self.name}: {path} reads otherwise than it was written; is the disk full?"
                )
        check = run_tool("e2fsck", "-f", "-n", self._where)
        if check.returncode:
            last = (check.stdout.strip().splitlines() or ["no reason given"])[-1]
            raise EdgeError(f"{self.name}: e2fsck finds the file system damaged: {last}")

    def _digest(self, path: str) -> str:
        command = [tool_path("debugfs"), "-R", f"cat {path}", self._where]
        running = hashlib.sha256()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as reader:
            assert reader.stdout is not None
            while block := reader.stdout.read(2**20):
                running.update(block)
        return running.hexdigest()


def content_sha256(content: bytes | Path) -> str:
    """Return the sha256 of what a File holds."""
    return sha256(content) if isinstance(content, bytes) else sha256_of(content)
