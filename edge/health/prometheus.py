"""The node's health for Prometheus, on loopback alone: the last `health` message as gauges.

The same figures as the message holds and no others: those of the process, such as its processor time,
would grow with every face in view.
"""

from __future__ import annotations

import asyncio
import math
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from edge.base.errors import UsageError
from edge.base.listen import Listener

if TYPE_CHECKING:
    from prometheus_client.core import GaugeMetricFamily

ADDRESS = "127.0.0.1"
MOST_CONNECTIONS = 16
REQUEST_SECONDS = 5.0  # for a whole request, and again for its answer
LARGEST_REQUEST = 8192  # bytes
# Of the message, by its own names; what is null there is left out here.
GAUGES = {
    "uptime_seconds": "since the node started",
    "frames_per_second": "due for analysis, those dropped too",
    "temperature_celsius": "hottest thermal zone",
    "throttled": "1 while the kernel slows the board down",
    "pace": "work taken on: 0 every picture ... 3 every third, at half size",
    "memory_mib": "resident memory",
    "outbox_pending": "readings that the broker has not acknowledged",
    "outbox_dropped": "readings lost: too old, too many, not written, or not readable any more",
    "outbox_unreadable": "of those lost, the ones whose bytes had changed on the disk",
    "outbox_damaged": "1 when a damaged file was set aside since the start",
}


class Metrics:
    """Serve /metrics from a thread of its own; `tell` changes what it says."""

    def __init__(self, port: int) -> None:
        """Open the port; raises UsageError where it cannot be had or the package is missing."""
        try:
            import prometheus_client
        except ImportError as error:
            raise UsageError(
                "runtime.prometheus_port needs the package prometheus-client; install the 'metrics' "
                "extra or take the setting out"
            ) from error
        self._health: dict[str, Any] = {}
        self._state, self._connected = "starting", False
        self._library = prometheus_client
        self._registry = prometheus_client.CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        where, most = (ADDRESS, port), MOST_CONNECTIONS
        try:
            self._listener = Listener.open(socket.AF_INET, where, "/metrics", most, REQUEST_SECONDS)
        except OSError as error:
            raise UsageError(
                f"runtime.prometheus_port {port} cannot be served ({error.strerror}); give another"
            ) from error
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self._loop.run_until_complete(self._until_closed())
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
            connection = self._listener.find(writer.get_extra_info("peername"))
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

    def tell(
        self,
        state: str | None = None,
        health: dict[str, Any] | None = None,
        connected: bool | None = None,
    ) -> None:
        """Change what is said. state: of the last `status`; health: content of the last `health`;
        connected: to the broker."""
        self._state = state or self._state
        self._connected = self._connected if connected is None else connected
        self._health = health or self._health

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges; prometheus-client asks for them at each request."""
        from prometheus_client.core import GaugeMetricFamily

        health = self._health
        yield GaugeMetricFamily(
            "edge_online", "1 while status is online", value=float(self._state == "online")
        )
        yield GaugeMetricFamily(
            "edge_broker_connected", "1 while it is", value=float(self._connected)
        )
        for name, text in GAUGES.items():
            if (value := _figure(health.get(name))) is not None:
                yield GaugeMetricFamily(f"edge_{name}", text, value=value)
        latency = GaugeMetricFamily("edge_stage_ms", "latency of a stage", labels=["stage", "part"])
        for stage, figures in health.get("stages", {}).items():
            for part, given in figures.items():
                if (value := _figure(given)) is not None:
                    latency.add_metric([stage, part.removesuffix("_ms")], value)
        yield latency

    def close(self) -> None:
        """Stop serving."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=2.0)
        self._listener.close()


def _figure(value: float | None) -> float | None:
    """Return what can be written as a sample; one figure that cannot must not end all others."""
    try:
        found = math.nan if value is None else float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None
