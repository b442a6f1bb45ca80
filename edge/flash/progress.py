"""The progress of a long copy: a bar on a terminal, a line every 10 % elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from edge.base.timing import format_duration

MIB = 1 << 20
REDRAW_SECONDS = 0.2
MIN_RATE_SECONDS = 2.0  # before that a rate says little
STEP_PERCENT = 10


class Progress:
    """Shows progress on stderr: `with Progress("writing", total) as p: p.advance(bytes)`."""

    def __init__(
        self,
        verb: str,
        total: int,
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """total: in bytes."""
        self._verb, self._total, self._clock = verb, total, clock
        self._out = out if out is not None else sys.stderr
        self._terminal = self._out.isatty()
        self._began = clock()
        self._drawn = self._began - REDRAW_SECONDS
        self._step = STEP_PERCENT
        self.done = 0

    def __enter__(self) -> Progress:
        if self._terminal:
            self._draw()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._terminal:
            # The last state stays, and what comes next has a line of its own.
            self._draw()
            self._out.write("\n")
            self._out.flush()

    def advance(self, count: int) -> None:
        """Count so many more bytes."""
        self.done += count
        if self._terminal:
            if self._clock() - self._drawn >= REDRAW_SECONDS:
                self._draw()
        elif self._percent() >= self._step:
            self._step = self._percent() // STEP_PERCENT * STEP_PERCENT + STEP_PERCENT
            print(f"{self._verb}: {self._percent()} %, {self._facts()}", file=self._out, flush=True)

    def _percent(self) -> int:
        return 100 * self.done // self._total if self._total else 100

    def _facts(self) -> str:
        """Format `1234 of 14784 MiB, 23.4 MiB/s, 9 min left`."""
        seconds = self._clock() - self._began
        facts = [f"{self.done // MIB} of {self._total // MIB} MiB"]
        if self.done and seconds >= MIN_RATE_SECONDS:
            rate = self.done / MIB / seconds
            facts.append(f"{rate:.1f} MiB/s" if rate < 100 else f"{rate:.0f} MiB/s")
            if self.done < self._total:
                facts.append(
                    f"{format_duration(seconds * (self._total - self.done) / self.done)} left"
                )
        if self.done >= self._total:
            facts.append(f"took {format_duration(seconds)}")
        return ", ".join(facts)

    def _draw(self) -> None:
        self._drawn = self._clock()
        text = f"{self._percent():3} %  {self._facts()}"
        # One column stays free: a full line would wrap on some terminals, and could not be drawn over.
        width = _columns(self._out) - 1
        total = self._total // MIB
        # As long as the text ever gets, so that the bar keeps its length.
        longest = f"100 %  {total} of {total} MiB, 99.9 MiB/s, 1 h 05 min left"
        room = width - len(self._verb) - len(longest) - 4
        if room >= 5:
            full = room * self._percent() // 100
            text = f"[{'#' * full}{'.' * (room - full)}] {text}"
        self._out.write(f"\r{f'{self._verb} {text}'[:width]}\x1b[K")
        self._out.flush()


def _columns(out: TextIO) -> int:
    try:
        # A serial console says 0.
        return os.get_terminal_size(out.fileno()).columns or 80
    except OSError:
        return 80
