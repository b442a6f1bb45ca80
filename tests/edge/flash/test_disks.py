"""What the kernel says of disks, and which are refused: on machines made of files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge.base.errors import EdgeError
from edge.flash import disks
from edge.flash.disks import Disk, check_overwritable, examine

MIB = 1 << 20
ROOT_MOUNT = "27 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw"


class Machine:
    """A tree like /sys and /proc: a computer that runs from sda, and what a test adds."""

    def __init__(self, folder: Path) -> None:
        self.sys, self.proc = folder / "sys", folder / "proc"
        (self.proc / "self").mkdir(parents=True)
        (self.sys / "dev" / "block").mkdir(parents=True)
        self.mounts(ROOT_MOUNT)
        self.swaps()
        disk = self.add("sda", "8:0", where="pci0000:00/ata1/block")
        self.add("sda1", "8:1", partition_of=disk)
        self.add("sda2", "8:2", partition_of=disk)

    def add(
        self, name: str, number: str, where: str = "pci0000:00/usb1/block", mib: int = 61_000,
        partition_of: Path | None = None, **files: str,
    ) -> Path:  # fmt: skip
        """files: content by path, with __ for /."""
        folder = (partition_of or self.sys / "devices" / where) / name
        (folder / "holders").mkdir(parents=True)
        (folder / "slaves").mkdir()
        files = {"dev": number, "size": str(mib * 2048), "ro": "0", **files}
        if partition_of is not None:
            files["partition"] = "1"
        for path, text in files.items():
            file = folder / path.replace("__", "/")
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"{text}\n")
        (self.sys / "dev" / "block" / number).symlink_to(folder)
        return folder

    def lay(self, upper: Path, lower: Path) -> None:
        """A device-mapper or RAID device on a disk or partition."""
        (lower / "holders" / upper.name).symlink_to(upper)
        (upper / "slaves" / lower.name).symlink_to(lower)

    def mounts(self, *lines: str) -> None:
        (self.proc / "self" / "mountinfo").write_text("\n".join(lines) + "\n")

    def swaps(self, *lines: str) -> None:
        head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority"
        (self.proc / "swaps").write_text("\n".join((head, *lines)) + "\n")

    def look(self, number: str) -> Disk:
        return examine(number, self.sys, self.proc)

    def refusal(self, number: str, min_bytes: int = 0) -> str:
        with pytest.raises(EdgeError) as caught:
            check_overwritable(self.look(number), min_bytes)
        return str(caught.value)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine")


def test_a_card_in_a_usb_reader_is_told_and_taken(machine: Machine) -> None:
    machine.add("sdb", "8:16", device__vendor="Generic ", device__model="STORAGE DEVICE  ")
    disk = machine.look("8:16")
    assert str(disk) == "/dev/sdb  Generic STORAGE DEVICE  59.6 GiB (64 GB)  usb"
    assert disk.block == 512
    assert not disk.discards
    check_overwritable(disk, 60_000 * MIB)


def test_a_card_in_a_built_in_reader_is_told_and_taken(machine: Machine) -> None:
    files = {"queue__discard_max_bytes": "1000", "device__type": "SD", "device__name": "SC64G"}
    card = machine.add("mmcblk0", "179:0", "mmc0", **files)
    machine.add("mmcblk0p1", "179:1", partition_of=card)
    disk = machine.look("179:0")
    assert (disk.model, disk.attachment, disk.discards) == ("SC64G", "removable", True)
    check_overwritable(disk)


@pytest.mark.parametrize(
    ("whole", "part"), [("sdb", "sdb1"), ("nvme0n1", "nvme0n1p1"), ("mmcblk0", "mmcblk0p1")]
)
def test_a_partition_is_refused_and_its_disk_named(machine: Machine, whole: str, part: str) -> None:
    machine.add(part, "259:1", partition_of=machine.add(whole, "259:0"))
    assert machine.refusal("259:1").startswith(f"/dev/{part} is a partition of /dev/{whole};")
    check_overwritable(machine.look("259:0"))


def test_the_system_disk_is_refused(machine: Machine) -> None:
    assert "is the disk that this machine runs from (it holds /)" in machine.refusal("8:0")


@pytest.mark.parametrize("point", ["/boot", "/boot/efi", "/usr"])
def test_a_disk_that_holds_a_part_of_the_system_is_refused(machine: Machine, point: str) -> None:
    machine.add("nvme0n1p1", "259:1", partition_of=machine.add("nvme0n1", "259:0"))
    machine.mounts(ROOT_MOUNT, f"30 27 259:1 / {point} rw - vfat /dev/nvme0n1p1 rw")
    assert f"runs from (it holds {point})" in machine.refusal("259:0")


def test_a_system_on_an_encrypted_volume_group_is_found_through_both(machine: Machine) -> None:
    """disk > partition > LUKS > LVM > /"""
    part = machine.add("nvme0n1p3", "259:3", partition_of=machine.add("nvme0n1", "259:0"))
    crypt = machine.add("dm-0", "252:0", "virtual/block", dm__name="crypt")
    root = machine.add("dm-1", "252:1", "virtual/block", dm__name="vg-root")
    machine.lay(crypt, part)
    machine.lay(root, crypt)
    for line in (
        "27 1 252:1 / / rw - ext4 /dev/mapper/vg-root rw",
        "27 1 0:25 /@ / rw - btrfs /dev/mapper/vg-root rw,subvol=/@",
    ):
        machine.mounts(line)
        assert "runs from (it holds /)" in machine.refusal("259:0")


def test_a_system_on_btrfs_is_found_by_its_source(machine: Machine) -> None:
    """A btrfs is mounted under a number that no device has."""
    machine.mounts("27 1 0:25 /@ / rw - btrfs /dev/sda2 rw,subvol=/@")
    assert "runs from (it holds /)" in machine.refusal("8:0")


def test_the_second_disk_of_a_btrfs_is_refused(machine: Machine) -> None:
    machine.add("sdb", "8:16")
    (machine.sys / "fs/btrfs/7f-1/devices/sdb").mkdir(parents=True)
    assert "/dev/sdb is held by a mounted btrfs (7f-1)" in machine.refusal("8:16")


def test_a_mounted_partition_is_named_with_its_mount_and_the_way_out(machine: Machine) -> None:
    card = machine.add("sdb", "8:16")
    machine.add("sdb1", "8:17", partition_of=card)
    machine.add("sdb2", "8:18", partition_of=card)
    line = "40 27 8:17 / /media/anna/my\\040card rw - vfat /dev/sdb1 rw"
    machine.mounts(ROOT_MOUNT, line, "41 27 8:18 / /media/b rw - ext4 /dev/sdb2 rw")
    said = machine.refusal("8:16")
    assert "/dev/sdb1 is mounted at /media/anna/my card (and 1 more)" in said
    assert "umount /dev/sdb1" in said


def test_swap_is_refused(machine: Machine) -> None:
    machine.add("sdb3", "8:19", partition_of=machine.add("sdb", "8:16"))
    machine.swaps("/dev/sdb3                               partition\t1000\t0\t-2")
    assert "swapoff /dev/sdb3" in machine.refusal("8:16")


def test_what_device_mapper_holds_is_refused(machine: Machine) -> None:
    part = machine.add("sdb1", "8:17", partition_of=machine.add("sdb", "8:16"))
    upper = machine.add("dm-0", "252:0", "virtual/block", dm__name="backup")
    machine.lay(upper, part)
    assert "/dev/sdb1 is held by dm-0 (backup)" in machine.refusal("8:16")
    assert "is not a disk of its own, it lies on sdb1" in machine.refusal("252:0")


def test_readers_without_card_locked_cards_and_small_cards_are_refused(machine: Machine) -> None:
    machine.add("sdb", "8:16", mib=0)
    machine.add("sdc", "8:32", ro="1")
    machine.add("sdd", "8:48", mib=4096)
    assert "holds no card" in machine.refusal("8:16")
    assert "is read-only" in machine.refusal("8:32")
    said = machine.refusal("8:48", 4096 * MIB + 512)
    assert said.startswith("/dev/sdd holds 4.0 GiB (4 GB), the image needs 4.0 GiB")
    check_overwritable(machine.look("8:48"), 4096 * MIB)


def test_a_file_a_terminal_and_nothing_are_no_disks(tmp_path: Path) -> None:
    (tmp_path / "card.img").write_bytes(b"x")
    for path, said in (
        (tmp_path / "card.img", "is a file or folder"),
        (tmp_path / "none", "No such file"),
        (Path("/dev/null"), "is not a disk"),
    ):
        with pytest.raises(EdgeError, match=said) as caught:
            disks.device_number(path)
        assert caught.value.exit_code == 2


def test_this_machines_own_root_is_refused() -> None:
    device = os.stat("/").st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    if not Path("/sys/dev/block", number).exists():
        pytest.skip("needs a / that lies on a block device")
    disk = examine(number)
    with pytest.raises(EdgeError, match=r"runs from|is a partition|not a disk of its own"):
        check_overwritable(disk)
    assert "/" in [point for _, point in disk.mounts]
