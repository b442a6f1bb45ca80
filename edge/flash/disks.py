"""What the kernel says of a block device (/sys, /proc), and whether it may be overwritten.

Only files are read, so that a test can build another machine out of them. Mounts of other namespaces
(containers) are not seen here: the exclusive open in overwrite.py guards against those.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from edge.base.errors import EdgeError, UsageError

SYS, PROC = Path("/sys"), Path("/proc")
SECTOR = 512  # what /sys counts sizes in, whatever the device's own sectors are
SYSTEM = ("/", "/boot", "/boot/efi", "/boot/firmware", "/efi", "/usr")
LIST = "`lsblk -d -o NAME,SIZE,MODEL` lists them"


@dataclass(frozen=True)
class Disk:
    """A block device. Names are the kernel's, without /dev/."""

    name: str
    size: int  # bytes; 0 where a reader holds no card
    block: int  # bytes of a sector
    model: str
    attachment: str  # usb, removable, built in, or a loop device's file
    read_only: bool
    discards: bool
    parent: str  # the disk that a partition is of, else ""
    lower_devices: tuple[str, ...]  # what a device-mapper or RAID device lies on
    mounts: tuple[tuple[str, str], ...]  # device, mount point: its own, and of what lies on it
    swaps: tuple[str, ...]
    holders: tuple[tuple[str, str], ...]  # device, who holds it (dm-0, a btrfs)

    @property
    def path(self) -> str:
        """Return its path below /dev."""
        return f"/dev/{self.name}"

    def __str__(self) -> str:
        words = (self.path, self.model, gib(self.size), self.attachment)
        return "  ".join(word for word in words if word)


def gib(size: int) -> str:
    """Format a size (bytes) to compare with a card's label, in both units where they differ."""
    if size < 1 << 30:
        return f"{size / (1 << 20):.1f} MiB"
    return f"{size / (1 << 30):.1f} GiB ({size / 1e9:.0f} GB)"


def device_number(path: Path) -> str:
    """Return `MAJOR:MINOR` of a block device; raises UsageError for anything else."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; give a disk, {LIST}") from error
    if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode):
        raise UsageError(f"{path} is a file or folder, not a disk; give a disk, {LIST}")
    if not stat.S_ISBLK(found.st_mode):
        raise UsageError(f"{path} is not a disk; give a disk, {LIST}")
    return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"


def examine(device: str, sys: Path = SYS, proc: Path = PROC) -> Disk:
    """Describe the block device `MAJOR:MINOR`; raises EdgeError where the kernel has none."""
    folder = (sys / "dev" / "block" / device).resolve()
    if not folder.is_dir():
        raise EdgeError(f"the kernel shows no block device {device} in {sys}; this needs Linux")
    whole = folder.parent if (folder / "partition").exists() else folder
    family = _device_stack(folder)
    names = {name: member.name for member in family for name in _names(member)}
    numbers = {_text(member / "dev"): member.name for member in family}
    return Disk(
        name=folder.name,
        size=int(_text(folder / "size") or 0) * SECTOR,
        block=int(_text(whole / "queue" / "logical_block_size") or SECTOR),
        model=_model(whole),
        attachment=_attachment(whole),
        read_only="1" in (_text(folder / "ro"), _text(whole / "ro")),
        discards=int(_text(whole / "queue" / "discard_max_bytes") or 0) > 0,
        parent=whole.name if whole != folder else "",
        lower_devices=tuple(sorted(entry.name for entry in _entries(folder / "slaves"))),
        mounts=tuple(_mounts(proc, names, numbers)),
        swaps=tuple(_swaps(proc, names)),
        holders=tuple(_holders(sys, family)),
    )


def check_overwritable(disk: Disk, min_bytes: int = 0) -> None:
    """Raise EdgeError or UsageError unless the disk may be overwritten with `min_bytes`."""
    if disk.parent:
        raise UsageError(
            f"{disk.path} is a partition of /dev/{disk.parent}; give the whole disk, if it is the "
            f"right one: /dev/{disk.parent}"
        )
    if disk.lower_devices:
        raise UsageError(
            f"{disk.path} is not a disk of its own, it lies on {', '.join(disk.lower_devices)}; "
            f"give a disk, {LIST}"
        )
    ours = [point for _, point in disk.mounts if point in SYSTEM]
    if ours:
        raise EdgeError(
            f"{disk.path} is the disk that this machine runs from (it holds {ours[0]}); give the "
            f"card's device, {LIST}"
        )
    if disk.mounts:
        name, point = disk.mounts[0]
        more = f" (and {len(disk.mounts) - 1} more)" if len(disk.mounts) > 1 else ""
        raise EdgeError(
            f"/dev/{name} is mounted at {point}{more}; if {disk.path} is the right disk, "
            f"unmount it first: umount /dev/{name}"
        )
    if disk.swaps:
        raise EdgeError(
            f"/dev/{disk.swaps[0]} is swap in use; if {disk.path} is the right disk, "
            f"switch it off first: swapoff /dev/{disk.swaps[0]}"
        )
    if disk.holders:
        name, holder = disk.holders[0]
        raise EdgeError(
            f"/dev/{name} is held by {holder}; if {disk.path} is the right disk, release it first "
            f"(cryptsetup close, vgchange -an or mdadm --stop)"
        )
    if not disk.size:
        raise EdgeError(f"{disk.path} holds no card; put one in")
    if disk.read_only:
        raise EdgeError(f"{disk.path} is read-only; slide the card's lock, or take another card")
    if disk.size < min_bytes:
        raise EdgeError(
            f"{disk.path} holds {gib(disk.size)}, the image needs {gib(min_bytes)}; take a larger one"
        )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _device_stack(folder: Path) -> list[Path]:
    """Return the device, its partitions and what is stacked on them (dm, RAID), as folders of /sys."""
    found: list[Path] = []
    waiting = [folder]
    while waiting:
        member = waiting.pop(0)
        if member in found:
            continue
        found.append(member)
        waiting += [entry for entry in _entries(member) if (entry / "partition").exists()]
        waiting += [entry.resolve() for entry in _entries(member / "holders")]
    return found


def _names(member: Path) -> list[str]:
    """Return what /proc may call it: sdb1, dm-0, or mapper/NAME."""
    mapped = _text(member / "dm" / "name")
    return [member.name, f"mapper/{mapped}"] if mapped else [member.name]


def _resolve(source: str, names: dict[str, str]) -> str | None:
    """Return the member that a path of /dev means, also by a link such as /dev/disk/by-uuid/..."""
    for path in (source, os.path.realpath(source)):
        if path.startswith("/dev/") and path[5:] in names:
            return names[path[5:]]
    return None


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), text)


def _mounts(proc: Path, names: dict[str, str], numbers: dict[str, str]) -> list[tuple[str, str]]:
    """Find mounts by number and by source: a btrfs is mounted under a number of no device."""
    found = []
    for line in _text(proc / "self" / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, source = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(source) < 2:
            continue
        member = numbers.get(fields[2]) or _resolve(_unescape(source[1]), names)
        if member is not None:
            found.append((member, _unescape(fields[4])))
    return found


def _swaps(proc: Path, names: dict[str, str]) -> list[str]:
    lines = _text(proc / "swaps").splitlines()[1:]
    found = [_resolve(_unescape(line.split()[0]), names) for line in lines if line.split()]
    return [name for name in found if name is not None]


def _holders(sys: Path, family: list[Path]) -> list[tuple[str, str]]:
    found = []
    for member in family:
        for holder in _entries(member / "holders"):
            mapped = _text(holder / "dm" / "name")
            found.append((member.name, f"{holder.name} ({mapped})" if mapped else holder.name))
        # A btrfs over several disks names one of them where it is mounted, and all of them here.
        for pool in _entries(sys / "fs" / "btrfs"):
            if (pool / "devices" / member.name).exists():
                found.append((member.name, f"a mounted btrfs ({pool.name})"))
    return found


def _model(whole: Path) -> str:
    device = whole / "device"
    words = " ".join(_text(device / name) for name in ("vendor", "model", "name")).split()
    return " ".join(word for word in words if not word.startswith("0x"))  # a virtual disk's vendor


def _attachment(whole: Path) -> str:
    backing = _text(whole / "loop" / "backing_file")
    if backing:
        return f"the file {backing}"
    usb = any(part.startswith("usb") for part in whole.parts)
    removable = _text(whole / "removable") == "1"
    card = _text(whole / "device" / "type") == "SD"
    return "usb" if usb else "removable" if removable or card else "built in"
