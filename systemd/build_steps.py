"""How far a build is: on a terminal one line that is written over, elsewhere a plain line a step."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from edge.base.cli import CLEAR_LINE, moves

TICK_SECONDS = 1.0


class Steps:
    """Counts the steps of a build and the time since it began."""

    def __init__(
        self,
        total: int,
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """out: default: stderr."""
        self._total, self._clock = total, clock
        self._out = out if out is not None else sys.stderr
        self._moves = moves(self._out)
        self._began, self._number = clock(), 0
        self._text, self._detail = "", ""
        self._drawing = threading.Lock()

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Say that the next step has begun; on a terminal its time goes on until it ends, and what it
        took stays."""
        self._number += 1
        self._text, self._detail = text, ""
        if not self._moves:
            self._out.write(self._line() + "\n")
            self._out.flush()
            yield
            return
        ended = threading.Event()
        ticking = threading.Thread(target=self._tick, args=(ended,), daemon=True)
        ticking.start()
        try:
            yield
        finally:
            ended.set()
            ticking.join()
            self._draw("\n")

    def detail(self, text: str) -> None:
        """Say what of the step is at work, such as which of how many wheels; on a terminal alone."""
        self._detail = text
        if self._moves:
            self._draw()

    def _tick(self, ended: threading.Event) -> None:
        while True:
            self._draw()
            if ended.wait(TICK_SECONDS):
                return

    def _line(self) -> str:
        minutes, seconds = divmod(int(self._clock() - self._began), 60)
        detail = f": {self._detail}" if self._detail else ""
        return f"[{self._number}/{self._total}] {minutes}:{seconds:02d} {self._text}{detail}"

    def _draw(self, end: str = "") -> None:
        columns = shutil.get_terminal_size((80, 24)).columns
        with self._drawing:
            # One column less: a full line would wrap.
            self._out.write(f"{CLEAR_LINE}{self._line()[: columns - 1]}{end}")
            self._out.flush()
