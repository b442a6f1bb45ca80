"""How far a long work is: a bar on a terminal, a few plain lines elsewhere, both on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

from edge.base.cli import moves
from edge.base.timing import format_duration

LINE_SECONDS = 30.0  # work that is done before then needs no line
STEP_PERCENT = 10
MIN_RATE_SECONDS = 2.0  # before that a rate says little
REDRAW_SECONDS = 0.2


class Progress:
    """Tell of one work: `with Progress("cropping train", 300, "crops") as p: p.advance()`.

    On a terminal a bar of rich's with rate and time left, above which printed lines stay. Elsewhere, or
    where rich is not installed, a line each tenth, LINE_SECONDS apart at least: ten at most. One at a
    time: two bars would draw over one another."""

    def __init__(
        self,
        what: str,
        total: int,
        unit: str,
        done: int = 0,
        shown: bool = True,
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """unit: of `total`, such as "images"; done: by an earlier run; shown: not by each of several
        processes."""
        self._what, self._total, self._unit = what, total, unit
        self._out = out if out is not None else sys.stderr
        self._clock, self._shown = clock, shown
        self.done, self._first = done, done
        self._began = self._told = clock()
        self._next = self._percent() + STEP_PERCENT
        self._bar = _bar(self._out) if shown and moves(self._out) else None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self._bar:
            self._task = self._bar.add_task(
                self._what, total=self._total, completed=self.done, facts=self._facts(), note=""
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count so much more as done. note: the latest, such as a loss."""
        self.done += count
        if self._bar:
            if (now := self._clock()) - self._told >= REDRAW_SECONDS or self.done >= self._total:
                self._told = now
                state = {"completed": self.done, "facts": self._facts(), "note": note}
                self._bar.update(self._task, refresh=True, **state)
        elif self._shown and self._due():
            self._told = self._clock()
            self._next = self._percent() + STEP_PERCENT
            said = ", ".join([f"{self._percent()} %", self._facts(), *([note] if note else [])])
            print(f"{self._what}: {said}", file=self._out, flush=True)

    def _due(self) -> bool:
        now, ended = self._clock(), self.done >= self._total
        since = self._began if ended else self._told  # what took long says that it is done
        return (ended or self._percent() >= self._next) and now - since >= LINE_SECONDS

    def _percent(self) -> int:
        return 100 * self.done // self._total if self._total else 100

    def _facts(self) -> str:
        """Format `1234 of 28558 images, 23.4 images/s, 9 min left`."""
        seconds, made = self._clock() - self._began, self.done - self._first
        facts = [f"{self.done} of {self._total} {self._unit}"]
        if made and seconds >= MIN_RATE_SECONDS:
            rate = made / seconds
            left = (self._total - self.done) / rate
            ended = f"took {format_duration(seconds)}"
            facts.append(f"{rate:{'.3g' if rate < 100 else '.0f'}} {self._unit}/s")
            facts.append(f"{format_duration(left)} left" if left > 0 else ended)
        return ", ".join(facts)


def _bar(out: TextIO) -> Any:
    """Make rich's display, or None where rich is not installed."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn
        from rich.progress import Progress as Bars
    except ImportError:
        return None
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn("{task.fields[facts]}", markup=False),
        TextColumn("{task.fields[note]}", markup=False),
    )
    return Bars(
        *columns,
        console=Console(file=out),
        # Drawn by `advance` alone: a thread of its own would take its time from what is timed.
        auto_refresh=False,
        expand=True,
        # A pipe on stdout gets what is printed there; on a terminal that goes above the bar.
        redirect_stdout=sys.stdout.isatty(),
        redirect_stderr=out is sys.stderr,
    )
