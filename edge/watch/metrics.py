"""`edge-watch --metrics`: how the receiver and the recorder stand, for Prometheus.

Nothing of a room or a reading is in it, only how many: an address beyond loopback opens no counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edge.base.errors import UsageError
from edge.base.exposition import ExpositionServer
from edge.delivery.connection_status import ConnectionState

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from edge.watch.receive import Receiver
    from edge.watch.record import Recorder
    from edge.watch.rooms import Rooms

HOST = "127.0.0.1"
# Of the recorder, since it started, by its own names.
COUNTERS = {
    "new": ("readings_stored", "readings stored"),
    "known": ("readings_known", "readings that came again and were stored already"),
    "conflicts": ("readings_apart", "stored under another log: their number had been given before"),
    "refused": ("messages_unstorable", "messages that the database will never take"),
    "unkept": ("messages_passed_over", "messages at QoS 0 that came faster than they were stored"),
    "faults": ("database_errors", "attempts to store or delete that failed"),
}


def parse_address(text: str) -> tuple[str, int]:
    """Read HOST:PORT or PORT, of loopback. Raises UsageError."""
    host, _, port = text.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"--metrics must be PORT or HOST:PORT, such as {HOST}:9465, not '{text}'")
    return host.strip("[]") or HOST, int(port)


class ServerFigures:
    """The collector of a server's figures."""

    def __init__(self, receiver: Receiver, rooms: Rooms, recorder: Recorder | None) -> None:
        self._receiver, self._rooms, self._recorder = receiver, rooms, recorder

    def collect(self) -> Iterator[Metric]:
        """Yield them; prometheus-client asks at each request."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        state = self._receiver.state.state
        stands = GaugeMetricFamily(
            "edge_watch_broker_state", "1 for how the connection stands", labels=["state"]
        )
        for known in ConnectionState:
            stands.add_metric([known.value], float(known is state))
        yield stands
        yield CounterMetricFamily(
            "edge_watch_messages_refused",
            "messages that are none of the kit's",
            sum(self._rooms.refused.values()),
        )
        recorder = self._recorder
        if recorder is None:
            return
        for name, (metric, text) in COUNTERS.items():
            yield CounterMetricFamily(f"edge_watch_{metric}", text, getattr(recorder, name))
        gauges = {
            "database_up": ("1 unless the last attempt failed", float(not recorder.fault)),
            "messages_waiting": ("heard and not stored yet", float(recorder.waiting)),
        }
        if (last := recorder.last) is not None:
            gauges |= {
                "last_stored_timestamp_seconds": ("of the last reading stored, UTC", last.at),
                "lag_seconds": (
                    "from the end of the window, by its node's clock, to the commit: the largest of "
                    "the last batch, without what a node sent late",
                    last.lag_seconds,
                ),
            }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"edge_watch_{name}", text, value)


def serve_metrics(
    text: str, receiver: Receiver, rooms: Rooms, recorder: Recorder | None
) -> ExpositionServer:
    """Serve /metrics at an address as `parse_address` reads it. Raises UsageError."""
    host, port = parse_address(text)
    figures = ServerFigures(receiver, rooms, recorder)
    return ExpositionServer(host, port, figures, f"--metrics {text}")
