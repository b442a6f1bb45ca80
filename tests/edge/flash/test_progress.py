"""Progress: a line each tenth, or a bar that keeps to its line."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
from pathlib import Path

import pytest

from edge.flash.progress import Progress, format_duration

MIB = 1 << 20


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
