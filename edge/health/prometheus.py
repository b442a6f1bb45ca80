"""The node's health for Prometheus, on loopback alone: the last `health` message as gauges.

The same figures as the message holds and no others: those of the process, such as its processor time,
would grow with every face in view.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from edge.base.exposition import ExpositionServer, figure

if TYPE_CHECKING:
    from prometheus_client.core import GaugeMetricFamily

ADDRESS = "127.0.0.1"
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
        self._health: dict[str, Any] = {}
        self._state, self._connected = "starting", False
        setting = f"runtime.prometheus_port {port}"
        self._server = ExpositionServer(ADDRESS, port, self, setting)

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
            if (value := figure(health.get(name))) is not None:
                yield GaugeMetricFamily(f"edge_{name}", text, value=value)
        latency = GaugeMetricFamily("edge_stage_ms", "latency of a stage", labels=["stage", "part"])
        for stage, figures in health.get("stages", {}).items():
            for part, given in figures.items():
                if (value := figure(given)) is not None:
                    latency.add_metric([stage, part.removesuffix("_ms")], value)
        yield latency
        behind = GaugeMetricFamily(
            "edge_recorder_behind",
            "readings that a recorder lacks for minutes",
            labels=["recorder"],
        )
        for name, count in health.get("recorders_behind", {}).items():
            behind.add_metric([name], count)
        yield behind

    def close(self) -> None:
        """Stop serving."""
        self._server.close()
