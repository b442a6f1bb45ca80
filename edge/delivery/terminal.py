"""Messages -> a person at a terminal: a line a window, how far a file is, a summary at the end."""

from __future__ import annotations

import shutil
import textwrap
import time
from datetime import datetime
from typing import Any, TextIO

from edge.base.cli import CLEAR_LINE, moves
from edge.base.clock import parse_rfc3339
from edge.delivery.tally import Tally

UPDATE_SECONDS = 0.2
BAR = 20  # characters
UNSEEN = {"closed": "outside privacy.hours", "paused": "paused by a command"}


def moment(seconds: float) -> str:
    """Format a file's own time: minutes and seconds, tenths and hours where there are such."""
    tenths = round(10 * seconds)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    text = f"{minutes:02d}:{rest // 10:02d}" + (f".{rest % 10}" if rest % 10 else "")
    return f"{hours}:{text}" if hours else text


def shortened(text: str, columns: int) -> str:
    """Cut a line to the terminal, between words."""
    if len(text) <= columns:
        return text
    kept = text[: columns - 3]
    return (kept.rsplit("  ", 1)[0].rstrip() if "  " in kept else kept) + " .."


def content(message: dict[str, Any]) -> str:
    """Say in words what one `counts` message says; the commonest expression comes first."""
    faces = message["faces"]
    if faces is None:
        camera = message["quality"]["camera"]
        return f"nothing seen: {UNSEEN.get(camera, camera)}"
    if isinstance(faces, str):
        return f"fewer than {message['min_group']} people: not counted"
    cells = sorted(message["counts"].items(), key=lambda cell: -cell[1])
    mix = "  ".join(f"{label} {n}" for label, n in cells if n) or "nobody"
    return f"{faces['mean']:4.1f} people  {mix}"


class Terminal:
    """Writes what edge-run shows a person. The line that tells how far a file is goes before any other
    is written, and leaves no trace in what stays on the screen."""

    def __init__(self, out: TextIO, tally: Tally, zero: float | None, length: float | None) -> None:
        """zero: UTC of a file's moment 0, None for a camera; length: of a file, seconds, None where it
        is not known."""
        self._out, self._tally, self._zero, self._length = out, tally, zero, length
        self._began, self._shown = time.monotonic(), 0.0
        self._moves = moves(out)
        self._pending = False

    def begin(self) -> None:
        """Say that a camera is on, and when something comes of it."""
        if self._zero is None:
            seconds = self._tally.window_seconds
            first = (time.time() // seconds + 2) * seconds
            # Said once, or the lines would be too long: whose time they are in.
            at = f"{self._clock(first)} ({datetime.fromtimestamp(first).astimezone().tzname()})"
            self._line(f"a line every {seconds:g} s, the first at {at}; Ctrl-C ends")

    def reading(self, message: dict[str, Any]) -> None:
        """Write the line of one `counts` message."""
        start, end = (parse_rfc3339(message[key]).timestamp() for key in ("start", "end"))
        self._line(f"{self._clock(start)}-{self._clock(end)}  {content(message)}")

    def progress(self, now: float) -> None:
        """Show how far a file is. now: seconds of its own time."""
        clock = time.monotonic()
        if not self._moves or self._zero is None or clock - self._shown < UPDATE_SECONDS:
            return
        self._shown = clock
        text = f"{moment(int(now))} read"
        if self._length:
            share = min(now / self._length, 1.0)
            left = (clock - self._began) * (1 - share) / share if share else 0.0
            bar = "#" * round(BAR * share)
            at, end = moment(int(now)), moment(int(self._length))
            text = f"[{bar:-<{BAR}}] {100 * share:3.0f} %  {at} of {end}"
            text += f", {left:.0f} s left" if share else ""
        # One column less: a full line would wrap.
        self._out.write(f"{CLEAR_LINE}{text[: self._columns() - 1]}")
        self._out.flush()
        self._pending = True

    def finish(self, why_nothing: str) -> None:
        """Write what was counted, or why nothing was."""
        for text in [*self._tally.lines(), *([why_nothing] if why_nothing else [])]:
            for line in textwrap.wrap(text, self._columns(), break_on_hyphens=False):
                self._line(line)

    def _line(self, text: str) -> None:
        self._clear()
        self._out.write(shortened(text, self._columns()) + "\n")
        self._out.flush()

    def _clear(self) -> None:
        if self._pending:
            self._out.write(CLEAR_LINE)
            self._pending = False

    def _columns(self) -> int:
        return max(shutil.get_terminal_size((80, 24)).columns, 20)

    def _clock(self, utc: float) -> str:
        if self._zero is not None:
            return moment(utc - self._zero)
        return datetime.fromtimestamp(utc).strftime("%H:%M:%S")
