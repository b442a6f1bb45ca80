"""How long a database may keep its caller waiting.

libpq waits for ever for a server that is there and does not answer: its disk stalls, its machine is
paused, or a firewall drops what it says. Meanwhile nothing would be stored, heard or shown, and nobody
told. PostgreSQL's own limits end what it works on, not what it does not get to.
"""

from __future__ import annotations

import os
import socket
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa


class AnswerLimit:
    """Cuts the connections of an engine, so that who waits for one of them gets an error."""

    def __init__(self, engine: sa.Engine) -> None:
        """engine: of psycopg, whose connections know their socket."""
        self._errors: type[Exception] = engine.dialect.loaded_dbapi.Error  # type: ignore[union-attr]
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.Lock()
        sa.event.listen(engine, "connect", self._add)

    def _add(self, connection: Any, record: Any) -> None:
        with self._lock:
            self._connections.add(connection)

    @contextmanager
    def within(self, seconds: float) -> Iterator[threading.Event]:
        """Cut all connections where the block takes longer. Yields what is set then."""
        over = threading.Event()
        timer = threading.Timer(seconds, self._cut, (over,))
        timer.daemon = True
        timer.start()
        try:
            yield over
        finally:
            timer.cancel()

    def _cut(self, over: threading.Event) -> None:
        over.set()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            try:
                with socket.socket(fileno=os.dup(connection.fileno())) as wire:
                    wire.shutdown(socket.SHUT_RDWR)
            except (OSError, self._errors):
                continue  # it was closed meanwhile
