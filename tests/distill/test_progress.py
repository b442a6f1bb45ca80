"""Progress: a bar with rate and time left on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import sys
import threading
from pathlib import Path

import pytest

from distill import progress
from distill.progress import Progress


def told(seconds: float, total: int = 400) -> list[str]:
    """What a work of so many seconds writes to a pipe."""
    out, now = io.StringIO(), [0.0]
    with Progress("cropping train", total, "crops", out=out, clock=lambda: now[0]) as bar:
        for _ in range(total):
            now[0] += seconds / total
            bar.advance(note="x")
    return out.getvalue().splitlines()


def test_on_a_pipe_long_work_is_ten_plain_lines_with_rate_and_time_left() -> None:
    lines = told(4000)
    assert len(lines) == 10
    assert lines[0] == "cropping train: 10 %, 40 of 400 crops, 0.1 crops/s, 1 h 00 min left, x"
    assert lines[-1] == "cropping train: 100 %, 400 of 400 crops, 0.1 crops/s, took 1 h 07 min, x"
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize(("seconds", "lines"), [(1, 0), (29, 0), (40, 1), (70, 2), (1e6, 10)])
def test_on_a_pipe_short_work_is_quiet(seconds: float, lines: int) -> None:
    assert len(told(seconds)) in (lines, lines + 1)
    assert bool(told(seconds)) == bool(lines)


def test_what_an_earlier_run_did_is_not_in_the_rate() -> None:
    out, now = io.StringIO(), [0.0]
    bar = Progress("features", 1000, "images", done=900, out=out, clock=lambda: now[0])
    with bar:
        now[0] = 100.0
        bar.advance(50)
        now[0] = 200.0
        bar.advance(50)
    assert out.getvalue() == "features: 100 %, 1000 of 1000 images, 0.5 images/s, took 3 min" + "\n"


def test_nothing_to_do_and_another_process_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    out = io.StringIO()
    with Progress("nothing", 0, "images", out=out):
        pass
    with Progress("training", 3, "steps", out=out, shown=False) as bar:
        bar.advance(3)
    assert out.getvalue() == ""


def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, term: str = "xterm") -> tuple[str, str]:
    """What a work draws on a terminal, and what a pipe on stdout gets meanwhile."""
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", "100")
    ours, theirs = pty.openpty()
    seen: list[bytes] = []
    reader = threading.Thread(target=read_all, args=(ours, seen))
    reader.start()
    now = [0.0]
    with (
        monkeypatch.context() as patched,
        open(theirs, "w") as err,
        (tmp_path / "out").open("w") as out,
    ):
        patched.setattr(sys, "stderr", err)
        patched.setattr(sys, "stdout", out)
        with Progress("training", 100, "steps", clock=lambda: now[0]) as bar:
            for step in range(100):
                now[0] += 60.0
                bar.advance(note=f"loss [{step}]")
                if step == 50:
                    print("epoch 0 done")
                    print("a word aside", file=sys.stderr)
    reader.join(10)  # the terminal's last writer has closed it
    os.close(ours)
    return b"".join(seen).decode(), (tmp_path / "out").read_text()


def read_all(terminal: int, seen: list[bytes]) -> None:
    with contextlib.suppress(OSError):  # EIO: nobody writes any more
        while part := os.read(terminal, 65536):
            seen.append(part)


def test_a_terminal_shows_a_bar_with_rate_time_left_and_note(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("rich", reason="draws the bar; without it lines are told")
    screen, piped = drawn(monkeypatch, tmp_path)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen)
    assert re.search(
        r"training .*51% 51 of 100 steps, 0\.0167 steps/s, 49 min left loss \[50\]", plain
    )
    assert "100 of 100 steps, 0.0167 steps/s, took 1 h 40 min" in plain
    assert "a word aside" in plain
    assert piped == "epoch 0 done\n", "what stdout is for goes to the pipe, nothing else does"
    assert screen.rstrip().endswith("\x1b[?25h"), "the cursor is back"


def test_without_rich_or_on_a_dumb_terminal_lines_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    screen, _ = drawn(monkeypatch, tmp_path, term="dumb")
    assert screen.count("training: ") == 10
    monkeypatch.setitem(sys.modules, "rich.console", None)
    screen, _ = drawn(monkeypatch, tmp_path)
    assert screen.count("training: ") == 10
    assert "\x1b" not in screen
