"""A page in a real browser, and what went wrong on it."""

from __future__ import annotations

from typing import Any

from support.patience import PATIENCE


class Watched:
    """A page, and what went wrong on it or left the machine."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.page = browser.new_page(**options)
        # Its own half minute is soon over where the machine does other things.
        self.page.set_default_timeout(1000 * PATIENCE)
        self.wrong: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", self._asked)
        self._host = url.split("/")[2]
        self.page.goto(url)

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(message.text)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(("data:", "blob:")) and self._host not in request.url:
            self.wrong.append(f"asked {request.url}")
