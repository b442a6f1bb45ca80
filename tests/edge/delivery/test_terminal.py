"""What edge-run shows a person: lines that fit, how far a file is, and JSON only where asked for."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from datetime import datetime, timezone
from fcntl import ioctl
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from edge.base.cli import CLEAR_LINE, Formatter
from edge.base.clock import rfc3339
from edge.delivery.tally import Tally
from edge.delivery.terminal import Terminal, moment, shortened
from support.paths import CLIP, PICTURES, ROOT


def last_written(text: str) -> list[str]:
    """The lines that stay on a terminal."""
    return [line.rsplit(CLEAR_LINE, 1)[-1] for line in text.removesuffix("\n").split("\n")]


class Screen(io.StringIO):
    """A terminal that keeps what was written to it."""

    def isatty(self) -> bool:
        return True

    def rows(self) -> list[str]:
        """What stays on it."""
        return last_written(self.getvalue())


def counts(start: float, seconds: float, faces: Any, cells: dict[str, int]) -> dict[str, Any]:
    return {
        "start": rfc3339(1000.0 + start),
        "end": rfc3339(1000.0 + start + seconds),
        "min_group": 5,
        "faces": faces,
        "counts": cells,
        "quality": {"camera": "file"},
    }


def terminal(screen: Screen, length: float | None = 20.0) -> Terminal:
    return Terminal(screen, Tally(10.0, 5), 1000.0, length)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("edge.delivery.terminal.UPDATE_SECONDS", 0.0)
    return Screen()


def test_a_window_is_a_line_and_the_progress_leaves_no_trace(screen: Screen) -> None:
    shown = terminal(screen)
    shown.begin()
    shown.progress(5.0)
    shown.reading(counts(0, 10, {"mean": 7.5, "max": 9}, {"neutral": 2, "happiness": 6, "fear": 0}))
    shown.progress(15.0)
    shown.reading(counts(10, 10, "<5", {}))
    shown.reading(counts(20, 10, None, {}))
    shown.finish("why")
    assert "[#####---------------]  25 %  00:05 of 00:20, " in screen.getvalue()
    assert screen.rows() == [
        "00:00-00:10   7.5 people  happiness 6  neutral 2",
        "00:10-00:20  fewer than 5 people: not counted",
        "00:20-00:30  nothing seen: file",
        "why",
    ]


def test_a_camera_says_which_zone_its_times_are_in(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "America/St_Johns")
    time.tzset()
    try:
        shown = Terminal(screen, Tally(10.0, 5), None, None)
        shown.begin()
        noon = datetime(2026, 7, 1, 12, tzinfo=timezone.utc).timestamp()
        shown.reading(counts(noon - 1000.0, 10, "<5", {}))
    finally:
        monkeypatch.undo()
        time.tzset()
    first, window = screen.rows()
    assert re.fullmatch(
        r"a line every 10 s, the first at \d\d:\d\d:\d0 \(N[SD]T\); Ctrl-C ends", first
    )
    assert window == "09:30:00-09:30:10  fewer than 5 people: not counted"


def test_a_terminal_that_cannot_go_back_gets_no_progress(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    shown = terminal(screen)
    shown.progress(5.0)
    shown.finish("")
    assert screen.getvalue() == ""


def test_a_file_of_unknown_length_is_told_by_its_time(screen: Screen) -> None:
    terminal(screen, None).progress(75.0)
    assert screen.rows() == ["01:15 read"]


@given(
    st.dictionaries(st.text("abcdefghij", min_size=1, max_size=64), st.integers(0, 999)),
    st.integers(20, 200),
)
def test_every_line_fits_the_terminal(cells: dict[str, int], columns: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        patch.setenv("TERM", "xterm")
        patch.setattr("edge.delivery.terminal.UPDATE_SECONDS", 0.0)
        screen = Screen()
        shown = terminal(screen)
        shown.progress(19.0)
        shown.reading(counts(0, 10, {"mean": 7.5, "max": 9}, cells))
        shown.finish("fewer than 5 people in every window: --min-group 1 shows them")
    for row in re.split(r"\n|" + re.escape(CLEAR_LINE), screen.getvalue()):
        assert len(row) <= columns


@given(st.text("ab  ", max_size=100), st.integers(10, 60))
def test_a_shortened_line_keeps_its_beginning(text: str, columns: int) -> None:
    short = shortened(text, columns)
    assert len(short) <= columns
    assert short == text or (short.endswith(" ..") and text.startswith(short[:-3]))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "00:00"), (1.5, "00:01.5"), (59.96, "01:00"), (754, "12:34"), (3600, "1:00:00")],
)
def test_a_moment_of_a_file_is_read_as_on_a_player(seconds: float, text: str) -> None:
    assert moment(seconds) == text


def test_a_line_of_the_log_takes_the_place_of_the_progress(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = logging.LogRecord("edge", logging.INFO, "", 0, "camera lost", None, None)
    assert Formatter("%(message)s").format(record) == "camera lost"
    monkeypatch.setattr("sys.stderr", screen)
    assert Formatter("%(message)s").format(record) == f"{CLEAR_LINE}camera lost"


def at_terminal(state: Path, *options: object) -> tuple[int, str]:
    """Run edge-run on a terminal of 80 columns; returns its exit code and what its stdout shows."""
    ours, theirs = pty.openpty()
    ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    env = {**os.environ, "XDG_STATE_HOME": str(state), "TERM": "xterm"}
    env.pop("COLUMNS", None)
    node = subprocess.Popen(
        [sys.executable, "-m", "edge.run", *map(str, options)],
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env=env,
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # how a terminal says that nobody writes any more
            break
        said += part
    os.close(ours)
    return node.wait(), said.decode().replace("\r\n", "\n")


@pytest.mark.process
def test_on_a_terminal_the_clip_is_read_by_a_person(detector_file: Path, tmp_path: Path) -> None:
    options = ["--camera", CLIP, "--max-seconds", 5, "--window", 2, "--min-group", 1]
    code, said = at_terminal(tmp_path, *options)
    assert code == 0
    assert " of 00:05" in said
    rows = last_written(said)
    assert [row[:11] for row in rows[:2]] == ["00:00-00:02", "00:02-00:04"]
    assert rows[2] == "2 windows of 2 s: all counted"
    assert re.match(r"7\.\d people on average: neutral \d\d %, happiness", rows[3])
    assert all(len(row) <= 80 for row in re.split(r"\n|" + re.escape(CLEAR_LINE), said))


@pytest.mark.process
def test_json_is_forced_on_a_terminal(detector_file: Path, tmp_path: Path) -> None:
    options = ["--camera", PICTURES, "--window", 1, "--min-group", 1, "--json"]
    code, said = at_terminal(tmp_path, *options)
    assert code == 0
    topics = [json.loads(line)["topic"].rsplit("/", 1)[1] for line in said.splitlines()]
    assert topics.count("counts") == len(list(PICTURES.iterdir()))
