"""What systemd is told (sd_notify(3)): ready, alive, in what state, stopping. Silent without systemd.

The watchdog is fed by the one loop that does the work, when it finished a Frame or a Tick: a pause or a
camera that is away keeps it fed, a hang does not.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)


class Systemd:
    """Send a datagram a fact to NOTIFY_SOCKET."""

    def __init__(
        self,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):  # an abstract socket
            self._address = f"\0{self._address[1:]}"
        watchdog = environment.get("WATCHDOG_USEC", "0")
        own = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        # A quarter of what systemd allows: one late frame is no reason to be killed.
        self._every = int(watchdog) / 4e6 if watchdog.isdigit() and own else 0.0
        self._clock, self._fed, self._ready = clock, 0.0, False

    @property
    def service(self) -> bool:
        return bool(self._address)

    def _send(self, *facts: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.settimeout(0.5)
                out.sendto("\n".join(facts).encode(), self._address)
        except OSError as error:
            log.warning("systemd does not listen: %s", error.strerror or error)

    def progress(self) -> None:
        """Say that the loop finished a Frame or a Tick. The first one means that the node is ready."""
        if not self._ready:
            self._ready = True
            self._send("READY=1")
        now = self._clock()
        if self._every and now - self._fed >= self._every:
            self._fed = now
            self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Send the one line of `systemctl status`."""
        self._send(f"STATUS={' '.join(text.split())}")

    def stopping(self) -> None:
        self._send("STOPPING=1")
