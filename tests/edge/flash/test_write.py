"""Overwriting disks: refusals on machines made of files, writing and wiping on real loop devices."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import pty
import random
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge.base.errors import EdgeError
from edge.flash import disks, overwrite, wipe, write
from edge.flash.disks import Disk, check_overwritable, examine
from edge.flash.progress import Progress, format_duration
from support.command import Done
from support.paths import ROOT

MIB = 1 << 20
ROOT_MOUNT = "27 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw"


# -- machines made of files -------------------------------------------------------------------------


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


# -- images -----------------------------------------------------------------------------------------


def image_bytes(mib: int) -> bytes:
    """Noise with a GPT header: CRC, and a copy in the last sector."""
    data = bytearray(random.Random(7).randbytes(mib * MIB))
    header = bytearray(92)
    header[:16] = struct.pack("<8sII", b"EFI PART", 0x10000, 92)
    struct.pack_into("<QQ", header, 24, 1, mib * MIB // 512 - 1)
    struct.pack_into("<I", header, 16, zlib.crc32(header))
    data[512:1024] = bytes(header).ljust(512, b"\0")
    return bytes(data)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "aula-1.img"
    path.write_bytes(image_bytes(18))
    return path


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"PK\3\4" + bytes(4096), "not a disk image"),
        (b"x", "not a disk image"),
        (image_bytes(2)[: MIB + 512], "is cut off"),
        (image_bytes(2)[:540] + b"?" + image_bytes(2)[541:], "damaged partition table"),
    ],
)
def test_what_is_no_whole_image_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "bad.img"
    path.write_bytes(content)
    with pytest.raises(EdgeError, match=said), write.open_image(path):
        pass


def test_sfdisks_own_table_is_an_image(tmp_path: Path) -> None:
    sfdisk = shutil.which("sfdisk", path=f"{os.environ['PATH']}:/usr/sbin")
    if sfdisk is None:
        pytest.skip("needs sfdisk (Debian: apt-get install fdisk)")
    path = tmp_path / "made.img"
    path.write_bytes(bytes(8 * MIB))
    subprocess.run([sfdisk, "-q", path], input="label: gpt\n,,\n", text=True, check=True)
    with write.open_image(path) as found:
        assert found.size == 8 * MIB
    os.truncate(path, 8 * MIB - 512)
    with pytest.raises(EdgeError, match="is cut off"), write.open_image(path):
        pass


class Hook(Progress):
    """Does something once so many bytes are through."""

    def __init__(self, after: int, do: Callable[[], object]) -> None:
        super().__init__("", 1, io.StringIO())
        self._after, self._do = after, do

    def advance(self, count: int) -> None:
        self.done += count
        if self.done >= self._after:
            self._after = 1 << 60
            self._do()


def plain(path: Path, mib: int, content: bytes = b"\xff") -> int:
    """A file in the place of a disk, and its descriptor."""
    path.write_bytes(content * (mib * MIB // len(content)))
    return os.open(path, os.O_RDWR)


def nothing() -> None:
    pass


@pytest.mark.parametrize("how", ["rewritten", "longer", "shorter"])
def test_an_image_that_changes_while_it_is_read_is_noticed(tmp_path: Path, how: str) -> None:
    path = tmp_path / "aula-1.img"
    path.write_bytes(image_bytes(18))
    target = plain(tmp_path / "disk", 20)

    def change() -> None:
        if how == "rewritten":
            with path.open("r+b") as file:
                file.write(b"other")
        else:
            os.truncate(path, 19 * MIB if how == "longer" else 5 * MIB)

    with (
        write.open_image(path) as found,
        pytest.raises(EdgeError, match="changed while it was read"),
    ):
        write.copy(found, target, 20 * MIB, Hook(6 * MIB, change))
    assert (tmp_path / "disk").read_bytes()[: 4 * MIB] == bytes(4 * MIB), "no table on the disk"
    os.close(target)


@pytest.mark.parametrize("place", [0, 9 * MIB + 5, 18 * MIB - 1])
def test_one_wrong_bit_is_noticed_and_placed(tmp_path: Path, image: Path, place: int) -> None:
    target = plain(tmp_path / "disk", 20)
    with write.open_image(image) as found:
        digests = write.copy(found, target, 20 * MIB, Hook(0, nothing))
        write.verify(target, found.size, digests, Hook(0, nothing))
        byte = os.pread(target, 1, place)[0]
        os.pwrite(target, bytes([byte ^ 1]), place)
        with pytest.raises(EdgeError, match=rf"written, {place // (4 * MIB) * 4} MiB from"):
            write.verify(target, found.size, digests, Hook(0, nothing))
    os.close(target)


def test_old_tables_go_first_and_the_new_one_comes_last(tmp_path: Path, image: Path) -> None:
    """Whenever it is stopped, no board finds a table: neither the old one's copy nor the new one."""
    target = plain(tmp_path / "disk", 32)
    seen: list[bytes] = []
    with write.open_image(image) as found:
        half = Hook(10 * MIB, lambda: seen.append((tmp_path / "disk").read_bytes()))
        write.copy(found, target, 32 * MIB, half)
    assert seen[0][: 4 * MIB] == bytes(4 * MIB)
    assert seen[0][-MIB:] == bytes(MIB)
    assert seen[0][20 * MIB : 31 * MIB] == b"\xff" * (11 * MIB), "the rest is left alone"
    assert (tmp_path / "disk").read_bytes()[: 18 * MIB] == image.read_bytes()
    os.close(target)


def test_a_byte_that_is_not_zero_is_noticed(tmp_path: Path) -> None:
    target = plain(tmp_path / "disk", 9)
    wipe.zero(target, 9 * MIB, Hook(0, nothing))
    wipe.verify_zeros(target, 9 * MIB, Hook(0, nothing))
    os.pwrite(target, b"k", 8 * MIB + 3)
    with pytest.raises(EdgeError, match="not zero 8 MiB from the start"):
        wipe.verify_zeros(target, 9 * MIB, Hook(0, nothing))
    os.close(target)


# -- progress ---------------------------------------------------------------------------------------


def test_away_from_a_terminal_progress_is_a_line_each_tenth(tmp_path: Path) -> None:
    now = [0.0]
    with (tmp_path / "log").open("w+") as out:
        with Progress("writing", 100 * MIB, out, lambda: now[0]) as progress:
            for _ in range(100):
                now[0] += 0.5
                progress.advance(MIB)
        lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 10
    assert lines[1] == "writing: 20 %, 20 of 100 MiB, 2.0 MiB/s, 40 s left"
    assert lines[-1] == "writing: 100 %, 100 of 100 MiB, 2.0 MiB/s, took 50 s"


@pytest.mark.parametrize("columns", [80, 40, 0])
def test_a_bar_keeps_its_length_and_its_line(columns: int) -> None:
    """Of a card of 64 GB at 15 MiB/s, from more than an hour to nothing left. 0: a serial console."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    now = [0.0]
    seen = b""
    with (
        open(theirs, "w") as out,
        Progress("comparing", 61_035 * MIB, out, lambda: now[0]) as progress,
    ):
        for _ in range(61_035 // 35):
            now[0] += 35 / 15
            progress.advance(35 * MIB)
            seen += os.read(ours, 65536)
        now[0] += 2
        progress.advance(61_035 * MIB - progress.done)
        seen += os.read(ours, 65536)
    os.close(ours)
    drawn = re.findall(r"\r([^\r\n]*)\x1b\[K", seen.decode())
    assert len(drawn) > 1000
    assert max(map(len, drawn)) == {80: 79, 40: 39, 0: 79}[columns]
    bars = {len(line.partition("[")[2].partition("]")[0]) for line in drawn}
    assert bars == {0 if columns == 40 else 12}
    if columns == 80:
        assert drawn[600].endswith("]  34 %  21000 of 61035 MiB, 15.0 MiB/s, 44 min left")
        assert drawn[-1].startswith("comparing [############] 100 %")


def test_times_are_told_as_people_say_them() -> None:
    assert [format_duration(s) for s in (4.4, 89, 95, 3599, 3900)] == [
        "4 s", "89 s", "2 min", "1 h 00 min", "1 h 05 min",
    ]  # fmt: skip


# -- real devices -----------------------------------------------------------------------------------


class Loop:
    """A file of noise as a block device."""

    def __init__(self, file: Path, mib: int, *options: str, fill: bool = True) -> None:
        self.file = file
        with file.open("wb") as out:
            if fill:
                out.write(random.Random(1).randbytes(mib * MIB))
            out.truncate(mib * MIB)
        program = shutil.which("losetup", path=f"{os.environ['PATH']}:/usr/sbin")
        if os.getuid() or program is None:
            pytest.skip("needs root and losetup for a loop device")
        self._program = program
        made = subprocess.run(
            [program, "--find", "--show", *options, file], capture_output=True, text=True
        )
        if made.returncode:
            pytest.skip(f"needs a loop device: {made.stderr.strip()}")
        self.path = made.stdout.strip()

    def detach(self) -> None:
        subprocess.run([self._program, "-d", self.path], check=True)


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Callable[..., Loop]]:
    made: list[Loop] = []

    def make(mib: int, *options: str) -> Loop:
        made.append(Loop(tmp_path / f"card{len(made)}", mib, *options))
        return made[-1]

    yield make
    for device in made:
        device.detach()


SCRIPT = """
import sys
from edge.flash.run import main
{before}
sys.exit(main())
"""


def flash(
    name: str, *words: object, typed: str | None = None, before: str = "", timeout: float = 60
) -> Done:
    """`edge-flash NAME WORDS`. before: lines of Python that run first in the process."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(before=before), name, *map(str, words)],
        input=typed or "",
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def test_an_image_goes_onto_a_disk_and_is_read_back(loop: Callable[..., Loop], image: Path) -> None:
    card = loop(24)
    before = card.file.read_bytes()
    done = flash("write", image, card.path, typed=f"{Path(card.path).name}\n")
    assert done.code == 0, done.err
    assert done.out.startswith(f"{hashlib.sha256(image.read_bytes()).hexdigest()}  aula-1.img\n")
    assert f"the file {card.file}" in done.err
    assert done.err.count("writing: ") == done.err.count("comparing: ") > 1
    assert "comparing: 100 %, 18 of 18 MiB" in done.err
    after = card.file.read_bytes()
    assert after[: 18 * MIB] == image.read_bytes()
    assert after[18 * MIB : 23 * MIB] == before[18 * MIB : 23 * MIB]


def test_a_disk_of_just_the_images_size_takes_it(loop: Callable[..., Loop], image: Path) -> None:
    card = loop(18)
    assert flash("write", image, card.path, "--yes").code == 0
    assert card.file.read_bytes() == image.read_bytes()


@pytest.mark.parametrize(
    ("name", "typed", "code"),
    [("write", "yes\n", 1), ("wipe", "sda\n", 1), ("wipe", "\n", 1), ("write", None, 2)],
)
def test_any_other_answer_writes_nothing(
    loop: Callable[..., Loop], image: Path, name: str, typed: str | None, code: int
) -> None:
    card = loop(18)
    before = card.file.read_bytes()
    done = flash(name, *([image] if name == "write" else []), card.path, typed=typed)
    assert done.code == code
    assert "nothing was written" in done.last
    assert card.file.read_bytes() == before


def test_real_devices_that_do_not_fit_are_refused(loop: Callable[..., Loop], image: Path) -> None:
    for options, said in (
        ([17], "holds 17.0 MiB, the image needs 18.0 MiB"),
        ([24, "--read-only"], "is read-only"),
        ([24, "--sector-size", "4096"], "sectors of 4096 bytes"),
    ):
        card = loop(*options)
        before = card.file.read_bytes()
        done = flash("write", image, card.path, "--yes")
        assert (done.code, said in done.last) == (1, True), done.err
        assert card.file.read_bytes() == before


def test_a_mounted_disk_is_refused_by_us_and_by_the_kernel(
    loop: Callable[..., Loop], image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = loop(24)
    point = tmp_path / "mount point"
    point.mkdir()
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", card.path], check=True)
    if subprocess.run(["mount", card.path, point], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        for words in (["write", image], ["wipe"]):
            done = flash(*words, card.path, "--yes")
            assert done.code == 1
            assert f"{card.path} is mounted at {point}" in done.last
        # As it would be if the mount were one that we cannot see.
        monkeypatch.setattr(disks, "_mounts", lambda *_: [])
        with pytest.raises(EdgeError, match="is in use"), overwrite.open_exclusive(Path(card.path)):
            pass
    finally:
        subprocess.run(["umount", point], check=True)
    assert flash("wipe", card.path, "--yes").code == 0


def test_without_root_the_way_to_get_it_is_told(loop: Callable[..., Loop]) -> None:
    card = loop(1)
    os.seteuid(65534)
    try:
        with (
            pytest.raises(EdgeError, match="takes root"),
            overwrite.open_exclusive(Path(card.path)),
        ):
            pass
    finally:
        os.seteuid(0)


def test_nobody_mounts_a_disk_between_the_question_and_the_end(
    loop: Callable[..., Loop], tmp_path: Path
) -> None:
    card = loop(24)
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", card.path], check=True)
    with overwrite.open_exclusive(Path(card.path)):
        done = subprocess.run(["mount", card.path, tmp_path], capture_output=True, text=True)
        assert done.returncode != 0
    assert "busy" in done.stderr or "already mounted" in done.stderr or "permission" in done.stderr


HALF = """
import os, signal
from edge.flash.progress import Progress
advance = Progress.advance
def half(self, count):
    advance(self, count)
    if self._verb == {verb!r} and self.done >= {bytes}:
        {do}
Progress.advance = half
# Where the tests run in a shell's background, SIGINT is ignored from the start.
signal.signal(signal.SIGINT, signal.default_int_handler)
"""


def half(verb: str, after: int, do: str) -> str:
    return HALF.format(verb=verb, bytes=after, do=do)


def test_ctrl_c_says_that_the_card_is_not_usable(loop: Callable[..., Loop], image: Path) -> None:
    card = loop(24)
    stop = half("writing", 8 * MIB, "os.kill(os.getpid(), signal.SIGINT)")
    done = flash("write", image, card.path, "--yes", before=stop)
    assert done.code == 130
    assert done.last.startswith(f"stopped; {card.path} is not usable: write it again")
    assert card.file.read_bytes()[: 4 * MIB] == bytes(4 * MIB)
    stop = half("zeroing", 8 * MIB, "os.kill(os.getpid(), signal.SIGINT)")
    done = flash("wipe", card.path, "--yes", before=stop)
    assert done.code == 130
    assert "is not wiped, keys may still be on it" in done.last


def test_a_kill_in_the_middle_leaves_no_table_and_the_next_try_works(
    loop: Callable[..., Loop], image: Path
) -> None:
    card = loop(24)
    kill = half("writing", 8 * MIB, "os.kill(os.getpid(), signal.SIGKILL)")
    assert flash("write", image, card.path, "--yes", before=kill).code == -9
    with pytest.raises(EdgeError, match="not a disk image"), write.open_image(card.file):
        pass
    assert flash("write", image, card.path, "--yes").code == 0
    assert card.file.read_bytes()[: 18 * MIB] == image.read_bytes()


def test_a_card_that_forgets_is_noticed(loop: Callable[..., Loop], image: Path) -> None:
    """Its file is changed behind the device, between writing and reading back."""
    card = loop(24)
    forget = f"open({str(card.file)!r}, 'r+b').write(bytes(4096))"
    done = flash("write", image, card.path, "--yes", before=half("writing", 18 * MIB, forget))
    assert done.code == 1
    assert "not what was written, 0 MiB from the start" in done.last
    assert "is not usable" in done.last
    forget = forget.replace("bytes(4096)", "b'key'")
    done = flash("wipe", card.path, "--yes", before=half("zeroing", 24 * MIB, forget))
    assert done.code == 1
    assert "not zero 0 MiB" in done.last


def test_a_failing_disk_is_told_as_unusable(tmp_path: Path, image: Path) -> None:
    """A device whose file cannot grow, which answers writes with an error."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", small])
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    try:
        card = Loop(small / "card", 24, fill=False)
        try:
            done = flash("write", image, card.path, "--yes")
        finally:
            card.detach()
    finally:
        subprocess.run(["umount", small], check=True)
    assert done.code == 1
    assert re.search(rf"{card.path} failed: .*; {card.path} is not usable: write it", done.last)


def test_wipe_leaves_nothing_and_says_what_it_cannot_reach(loop: Callable[..., Loop]) -> None:
    card = loop(24)
    done = flash("wipe", card.path, typed=f"{card.path}\n")
    assert done.code == 0, done.err
    assert card.file.read_bytes() == bytes(24 * MIB)
    if examine(disks.device_number(Path(card.path))).discards:
        assert "discarding: 100 %, 24 of 24 MiB" in done.err
    assert "checking: 100 %" in done.err
    assert "edge-flash ca revoke" in done.out
    assert "may still hold" in done.out


def test_on_a_terminal_of_80_columns_a_bar_is_drawn_in_place(
    loop: Callable[..., Loop], image: Path
) -> None:
    card = loop(24)
    ours, theirs = pty.openpty()
    subprocess.run(["stty", "cols", "80", "rows", "24"], stdin=theirs, check=True)
    each = SCRIPT.format(before="from edge.flash import progress; progress.REDRAW_SECONDS = 0")
    command = [sys.executable, "-c", each, "write", image, card.path]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT)
    os.close(theirs)
    seen, answered = b"", False
    while select.select([ours], [], [], 30)[0]:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        seen += part
        if not answered and b"to go on: " in seen:
            os.write(ours, Path(card.path).name.encode() + b"\n")
            answered = True
    assert process.wait(timeout=10) == 0, seen
    os.close(ours)
    text = seen.decode()
    drawn = re.findall(r"\r([^\r\n]*)\x1b\[K", text)
    assert len(drawn) > 6
    assert max(map(len, drawn)) < 80, drawn
    assert any(re.match(r"writing \[#+\.+\]  \d\d %  \d+ of 18 MiB", line) for line in drawn)
    assert re.match(r"comparing \[#+\] 100 %  18 of 18 MiB, took \d+ s$", drawn[-1])
    assert text.count("\x1b[K\r\n") == 2, "each bar stays on a line of its own"
