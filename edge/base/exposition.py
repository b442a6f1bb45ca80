"""/metrics for Prometheus from a thread of its own, behind a listener that no client can starve.

Whoever has figures is a collector: prometheus-client calls its `collect` at each request. No figures of
the process are added: a node's would grow with every face in view.
"""

from __future__ import annotations

import asyncio
import math
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from edge.base.errors import UsageError
from edge.base.listen import Listener

if TYPE_CHECKING:
    from prometheus_client.core import Metric

MOST_CONNECTIONS = 16
REQUEST_SECONDS = 5.0  # for a whole request, and again for its answer
LARGEST_REQUEST = 8192  # bytes
CLOSE_SECONDS = 2.0  # that an end waits for an answer that is under way


class Collector(Protocol):
    """Gives figures."""

    def collect(self) -> Iterator[Metric]:
        """Yield them as they are now; called in the server's thread."""


class ExpositionServer:
    """Serves what a collector gives, until it is closed."""

    def __init__(self, host: str, port: int, collector: Collector, setting: str) -> None:
        """Open the port. setting: by which it was asked for, for the errors. Raises UsageError where
        the port cannot be had or the package is missing."""
        try:
            import prometheus_client
        except ImportError as error:
            raise UsageError(
                f"{setting} needs the package prometheus-client; install the 'metrics' extra or take "
                "it out"
            ) from error
        self._library = prometheus_client
        self._registry = prometheus_client.CollectorRegistry(auto_describe=False)
        self._registry.register(collector)
        most, family = MOST_CONNECTIONS, socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            where = (host, port)
            self._listener = Listener.open(family, where, "/metrics", most, REQUEST_SECONDS)
        except OSError as error:
            raise UsageError(
                f"{setting} cannot be served ({error.strerror}); give another"
            ) from error
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self._loop.run_until_complete(self._until_closed())
        finally:
            self._listener.close()
            self._loop.close()

    async def _until_closed(self) -> None:
        server = await asyncio.start_server(
            self._answer, sock=self._listener, limit=LARGEST_REQUEST, backlog=128
        )
        while not self._stop.is_set():
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stop.wait(), 1.0)
            self._listener.sweep()
        server.close()
        for connection in list(self._listener.connections.values()):
            connection.end()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and close; what is slow, the listener ends."""
        # The client broke it off, was ended for its slowness, or sent no end of a header in bounds.
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            head = await reader.readuntil(b"\r\n\r\n")
            connection = self._listener.find(writer.get_extra_info("peername")[:2])
            if connection is not None:
                self._listener.begin(connection, REQUEST_SECONDS)
            method, _, rest = head.partition(b" ")
            path = rest.split(b" ")[0].partition(b"?")[0]
            if method not in (b"GET", b"HEAD"):
                status, body = "405 Method Not Allowed", b"use GET\n"
            elif path not in (b"/metrics", b"/"):
                status, body = "404 Not Found", b"see /metrics\n"
            else:
                status, body = "200 OK", self._library.generate_latest(self._registry)
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Type: {self._library.CONTENT_TYPE_LATEST}\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                + (b"" if method == b"HEAD" else body)
            )
            await writer.drain()
        writer.close()

    def close(self) -> None:
        """Stop serving. The thread closes what it listens at, also where an answer takes it longer: the
        number of a descriptor that was closed beside it may be another's by then."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=CLOSE_SECONDS)


def figure(value: float | None) -> float | None:
    """Return what can be written as a sample; one figure that cannot must not end all others."""
    try:
        found = math.nan if value is None else float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None
