"""A listening socket that no client can starve: connections are few, and slow ones are ended.

For servers that hand it to asyncio. Sockets are accepted here, so that a bound holds before a TLS
handshake, a header or a line of HTTP has come; a server then says what each is at.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
import time
from collections.abc import Callable
from contextlib import suppress

log = logging.getLogger(__name__)

LOG_SECONDS = 60.0
EVICTED_AT_ONCE = 16


class Connection(socket.socket):
    """An accepted connection. ends_at: monotonic; busy: a request of it is being answered."""

    ends_at: float = 0.0
    busy: bool = False
    ended: bool = False

    def end(self) -> None:
        """Cut it: whoever waits to read or write is told. The descriptor is the server's to close."""
        self.ended = True
        with suppress(OSError):  # the client was faster
            self.shutdown(socket.SHUT_RDWR)


class Listener(socket.socket):
    """Accepts at most `most` connections; beyond, those that wait longest for their request go first.

    In the thread of the event loop alone. Call `sweep` about once a second.
    """

    name: str
    most: int
    request_seconds: float
    connections: dict[tuple[str, int], Connection]

    @classmethod
    def open(
        cls,
        family: int,
        address: tuple[str, int],
        name: str,
        most: int,
        request_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> Listener:
        """Bind and listen. Raises OSError.

        Args:
            family: AF_INET or AF_INET6.
            address: host and port.
            name: of the server, for the log.
            most: connections at once; fewer where the process may open few files.
            request_seconds: a connection must bring a whole request, its TLS handshake included.
        """
        made = cls(family, socket.SOCK_STREAM)
        made.name, made.request_seconds, made._clock = name, request_seconds, clock
        # A quarter of the descriptors, so that a broker or a database can always be reached again.
        made.most = min(most, max(8, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
        made.connections, made._refused, made._slow, made._logged = {}, 0, 0, -LOG_SECONDS
        made._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.bind(address)
            made.setblocking(False)
            made.listen(128)
        except OSError:
            made.close()
            raise
        return made

    _clock: Callable[[], float]
    _refused: int
    _slow: int
    _logged: float
    _spare: int

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        """Accept one connection. Raises BlockingIOError where there is none now, as asyncio expects."""
        self._purge()
        if len(self.connections) >= self.most:
            # Those that were ended leave room once asyncio closed them; it may ask again before.
            if not any(c.ended for c in self.connections.values()):
                self._evict()
            if any(c.ended for c in self.connections.values()):
                raise BlockingIOError  # asyncio comes again, once it has closed what was ended
        try:
            accepted, address = super().accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._accept_and_close()
                raise BlockingIOError from error
            raise
        if len(self.connections) >= self.most:
            accepted.close()
            self._refused += 1
            raise BlockingIOError
        made = Connection(fileno=accepted.detach())
        made.ends_at = self._clock() + self.request_seconds
        self.connections[address[:2]] = made
        return made, address

    def _accept_and_close(self) -> None:
        """Turn one away although no descriptor is left: else asyncio would ask, and log, for ever."""
        self._refused += 1
        self._close_spare()
        with suppress(OSError):
            super().accept()[0].close()
        with suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _close_spare(self) -> None:
        """Close it once: its number may be another's by the next time."""
        spare, self._spare = self._spare, -1
        if spare >= 0:
            os.close(spare)

    def _purge(self) -> None:
        for key in [key for key, c in self.connections.items() if c.fileno() < 0]:
            del self.connections[key]

    def _evict(self) -> None:
        """End those that wait longest for their request."""
        idle = [c for c in self.connections.values() if not (c.busy or c.ended)]
        # Never all: the last to come may be no attacker.
        few = min(EVICTED_AT_ONCE, max(1, len(idle) // 2))
        for connection in sorted(idle, key=lambda c: c.ends_at)[:few]:
            connection.end()
            self._slow += 1

    def find(self, address: tuple[str, int]) -> Connection | None:
        """Return the open connection of a client's address."""
        return self.connections.get(address)

    def begin(self, connection: Connection, seconds: float) -> None:
        """Note that a request has come whole: its answer must be taken within so many seconds."""
        connection.busy, connection.ends_at = True, self._clock() + seconds

    def rest(self, connection: Connection) -> None:
        """Note that it waits for its next request."""
        connection.busy, connection.ends_at = False, self._clock() + self.request_seconds

    def sweep(self) -> None:
        """End what is over its time, and say once a minute what was ended."""
        self._purge()
        now = self._clock()
        for connection in self.connections.values():
            if now > connection.ends_at and not connection.ended:
                connection.end()
                self._slow += 1
        if (self._refused or self._slow) and now - self._logged >= LOG_SECONDS:
            log.warning(
                "%s ended %d slow connections and refused %d above %d",
                *(self.name, self._slow, self._refused, self.most),
            )
            self._logged, self._refused, self._slow = now, 0, 0

    def close(self) -> None:
        """Stop listening; open connections stay with the server."""
        self._close_spare()
        super().close()
