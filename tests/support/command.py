"""What a command left behind."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The one line that a user reads."""
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""
