"""Writing and wiping: a disk image by its bytes, and both commands on real loop devices."""

from __future__ import annotations

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
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge.base.errors import EdgeError
from edge.flash import disks, overwrite, wipe, write
from edge.flash.disks import examine
from edge.flash.progress import Progress
from support.command import Done, call
from support.paths import ROOT
from support.patience import PATIENCE

MIB = 1 << 20


# -- disk images -----------------------------------------------------------------------------------


def image_bytes(mib: int) -> bytes:
    """Noise with a GPT header: CRC, and a copy in the last sector."""
    data = bytearray(random.Random(7).randbytes(mib * MIB))
    header = bytearray(92)
    header[:16] = struct.pack("<8sII", b"EFI PART", 0x10000, 92)
    last = mib * MIB // 512 - 1
    for here, other in ((1, last), (last, 1)):
        struct.pack_into("<IIQQ", header, 16, 0, 0, here, other)
        struct.pack_into("<I", header, 16, zlib.crc32(header))
        data[here * 512 : here * 512 + 512] = bytes(header).ljust(512, b"\0")
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
        (image_bytes(2)[:MIB] + bytes(MIB), "is not whole: the copy of its table"),
        (image_bytes(2)[:-500] + b"?" + image_bytes(2)[-499:], "is not whole"),
    ],
)
def test_what_is_no_whole_image_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "bad.img"
    path.write_bytes(content)
    with pytest.raises(EdgeError, match=said), write.open_image(path):
        pass


@pytest.mark.process
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


def flash(name: str, *words: object, typed: str = "", before: str = "") -> Done:
    """`edge-flash NAME WORDS`, here or, with `before`, in a process that runs these lines first."""
    if not before:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdin", io.StringIO(typed))
            return call("edge.flash.run", name, *words, env={})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(before=before), name, *map(str, words)],
        input=typed,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
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
    [("write", "yes\n", 1), ("wipe", "sda\n", 1), ("wipe", "\n", 1), ("write", "", 2)],
)
def test_any_other_answer_writes_nothing(
    loop: Callable[..., Loop], image: Path, name: str, typed: str, code: int
) -> None:
    card = loop(18)
    before = card.file.read_bytes()
    done = flash(name, *([image] if name == "write" else []), card.path, typed=typed)
    assert done.code == code
    assert "nothing was written" in done.last
    assert card.file.read_bytes() == before


def test_an_answer_in_another_encoding_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = disks.Disk("sdb", 2**30, 512, "", "usb", False, False, "", (), (), (), ())
    typed = io.TextIOWrapper(io.BytesIO(b"sd\xff\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", typed)
    with pytest.raises(EdgeError, match="that is not sdb; nothing was written"):
        overwrite.confirm(disk, yes=False)


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


@pytest.mark.process
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
    while select.select([ours], [], [], PATIENCE)[0]:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        seen += part
        if not answered and b"to go on: " in seen:
            os.write(ours, Path(card.path).name.encode() + b"\n")
            answered = True
    assert process.wait(PATIENCE) == 0, seen
    os.close(ours)
    text = seen.decode()
    drawn = re.findall(r"\r([^\r\n]*)\x1b\[K", text)
    assert len(drawn) > 6
    assert max(map(len, drawn)) < 80, drawn
    assert any(re.match(r"writing \[#+\.+\]  \d\d %  \d+ of 18 MiB", line) for line in drawn)
    assert re.match(r"comparing \[#+\] 100 %  18 of 18 MiB, took \d+ s$", drawn[-1])
    assert text.count("\x1b[K\r\n") == 2, "each bar stays on a line of its own"
