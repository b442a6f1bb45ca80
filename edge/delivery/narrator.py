"""What a run is told to who started it: at a terminal all of it, in a log why nothing was counted."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from edge.delivery.tally import Tally
from edge.delivery.terminal import Terminal

log = logging.getLogger(__name__)

SOURCES = {"file": "a clip", "folder": "a folder"}


@dataclass(slots=True)
class Narrator:
    """Follows one run. kind: the source's; terminal: None where stdout is a script's."""

    tally: Tally
    kind: str
    terminal: Terminal | None = None
    first: float | None = None
    last: float = 0.0

    def begin(self) -> None:
        """Say that the source is open."""
        if self.terminal:
            self.terminal.begin()

    def reading(self, message: dict[str, Any]) -> None:
        """Take note of one `counts` message, and show it."""
        self.tally.add(message)
        if self.terminal:
            self.terminal.reading(message)

    def progress(self, now: float) -> None:
        """Take note of how far the source is, in seconds of its own time."""
        self.first = now if self.first is None else self.first
        self.last = now
        if self.terminal:
            self.terminal.progress(now)

    def finish(self, failed: bool, stopped: bool) -> None:
        """Say what was counted, and where nothing was, why: not of a source that failed, whose error
        says that. stopped: by a signal, which a log takes for reason enough."""
        why = "" if failed else self._why_nothing()
        if self.terminal:
            self.terminal.finish(why)
        elif why and not stopped:
            log.warning("%s", why)

    def _why_nothing(self) -> str:
        lasted = self.last - (self.first or 0.0)
        return self.tally.why_nothing(
            f"{SOURCES.get(self.kind, 'a run')} of {lasted:.3g} s", lasted
        )
