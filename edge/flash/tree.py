"""A node's root file system: what is written into it, and the two that are written to, an unpacked
folder (here) and the ext4 partition of a disk image (`ext4.py`). Paths are absolute within it, such as
"/etc/hostname".
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, Union

from edge.base.errors import EdgeError

Kind = Literal["file", "folder", "link", None]


@dataclass(frozen=True, slots=True)
class File:
    """A regular file. content: bytes, or a file of this machine to copy; mtime: seconds since 1970."""

    path: str
    content: Union[bytes, Path] = field(repr=False)  # it may be a key
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int | None = None

    @property
    def size(self) -> int:
        """Return its bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that is made, with its parents, where it is absent; an existing one stays as it is."""

    path: str
    mode: int = 0o755
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    path: str
    target: str


@dataclass(frozen=True, slots=True)
class Absent:
    """A file or link that is removed."""

    path: str


Entry = Union[File, Folder, Link, Absent]


class Tree(Protocol):
    """A root file system of a node that is not running."""

    name: str  # for messages

    def kind(self, path: str) -> Kind:
        """Return what is at a path; links are not followed."""

    def read(self, path: str) -> bytes | None:
        """Return a regular file's content; None where there is none."""

    def names(self, path: str) -> list[str]:
        """Return the names in a folder, sorted; empty where there is none."""

    def free_bytes(self) -> int:
        """Return what is left for files."""

    def apply(self, entries: Sequence[Entry]) -> None:
        """Write in order, and verify it. Raises EdgeError."""


def parents(path: str) -> list[str]:
    """Return a path's parents: of "/a/b/c", "/a" and "/a/b"."""
    parts = path.strip("/").split("/")
    return ["/" + "/".join(parts[:n]) for n in range(1, len(parts))]


def with_parents(entries: Sequence[Entry], tree: Tree) -> list[Entry]:
    """Return the entries with each missing parent, owned by root, before what lies in it."""
    known: set[str] = set()
    whole: list[Entry] = []
    for entry in entries:
        for path in [] if isinstance(entry, Absent) else parents(entry.path):
            if path not in known and tree.kind(path) is None:
                whole.append(Folder(path))
            known.add(path)
        if isinstance(entry, Folder):
            if entry.path in known or tree.kind(entry.path) == "folder":
                continue
            known.add(entry.path)
        whole.append(entry)
    return whole


class RootFolder:
    """A folder that holds a root file system, such as Linux_for_Tegra/rootfs; a `Tree`."""

    def __init__(self, folder: Path) -> None:
        """Open it; raises EdgeError where it is not such a folder, or belongs to another user."""
        self.name, self._root = str(folder), folder
        if not (folder / "etc").is_dir() or not (folder / "var/lib/dpkg").is_dir():
            raise EdgeError(
                f"{folder} holds no root file system (no etc, no var/lib/dpkg); unpack NVIDIA's sample "
                f"root file system there and run its apply_binaries.sh first"
            )
        owner = (folder / "etc").stat().st_uid
        if os.geteuid() not in (0, owner):
            raise EdgeError(f"{folder} belongs to another user; run edge-flash with sudo")

    def _at(self, path: str) -> Path:
        """Follow no link on the way: an absolute one would lead into this machine's own files."""
        place = self._root
        for part in path.strip("/").split("/"):
            if place != self._root and place.is_symlink():
                raise EdgeError(f"{self.name}: {place} is a link; edge-flash follows none")
            if part in ("", ".", ".."):
                raise EdgeError(f"{self.name}: '{path}' is not a plain path")
            place = place / part
        return place

    def kind(self, path: str) -> Kind:
        place = self._at(path)
        if place.is_symlink():
            return "link"
        return "folder" if place.is_dir() else "file" if place.is_file() else None

    def read(self, path: str) -> bytes | None:
        return self._at(path).read_bytes() if self.kind(path) == "file" else None

    def names(self, path: str) -> list[str]:
        return (
            sorted(p.name for p in self._at(path).iterdir()) if self.kind(path) == "folder" else []
        )

    def free_bytes(self) -> int:
        return shutil.disk_usage(self._root).free

    def apply(self, entries: Sequence[Entry]) -> None:
        for entry in with_parents(entries, self):
            place = self._at(entry.path)
            if not isinstance(entry, Folder) and (place.is_symlink() or place.exists()):
                place.unlink()
            if isinstance(entry, Folder):
                place.mkdir(exist_ok=True)
                place.chmod(entry.mode)
            elif isinstance(entry, Link):
                place.symlink_to(entry.target)
            elif isinstance(entry, File):
                # Never readable by more than it will be, not even for a moment.
                handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(handle, "wb") as out:
                    if isinstance(entry.content, bytes):
                        out.write(entry.content)
                    else:
                        with entry.content.open("rb") as source:
                            shutil.copyfileobj(source, out, 2**20)
                    os.fchmod(out.fileno(), entry.mode)
                    out.flush()
                    os.fsync(out.fileno())
                if entry.mtime is not None:
                    os.utime(place, (entry.mtime, entry.mtime))
            if isinstance(entry, File | Folder) and os.geteuid() == 0:
                os.chown(place, entry.uid, entry.gid)
