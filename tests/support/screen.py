"""A terminal of a test's, for what a program shows only there."""

from __future__ import annotations

import os
import pty
import re
import select
from collections.abc import Callable


class Terminal:
    """Reads what a program writes to its terminal."""

    def __init__(self) -> None:
        self._ours, self.theirs = pty.openpty()
        self.text = ""

    def shows(self, pattern: str) -> Callable[[], bool]:
        def look() -> bool:
            while select.select([self._ours], [], [], 0)[0]:
                self.text += os.read(self._ours, 65536).decode()
            return re.search(pattern, self.text) is not None

        return look

    def close(self) -> None:
        os.close(self._ours)
        os.close(self.theirs)
