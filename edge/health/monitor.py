"""Tell the broker, systemd and Prometheus how the node stands: on a change, and at its times."""

from __future__ import annotations

import time
from dataclasses import replace

from edge.delivery.answers import Behind
from edge.delivery.outbox import Outbox
from edge.delivery.publisher import Publisher
from edge.health.prometheus import Metrics
from edge.health.reports import Reports
from edge.health.state import Conditions, Standing, State
from edge.health.systemd import Systemd
from edge.health.throttle import Throttle

ANSWER_SECONDS = 0.4  # between two that were asked for


class Monitor:
    """Publish `status` when it changed and `health` every `health_seconds`."""

    def __init__(
        self,
        reports: Reports,
        publisher: Publisher,
        outbox: Outbox,
        systemd: Systemd,
        metrics: Metrics | None,
        health_seconds: float,
    ) -> None:
        self.systemd = systemd
        self._reports, self._publisher, self._outbox = reports, publisher, outbox
        self._metrics, self._every = metrics, health_seconds
        self._behind = Behind()
        self._standing = Standing(State.STARTING)
        self._published: tuple[State, str] | None = None
        self._line = ""
        self._requested = False
        self._health_at: float | None = None

    def set_status(self, standing: Standing) -> None:
        """Publish a change, once. What the broker cannot be told, systemd and Prometheus are."""
        self._standing = standing
        if (standing.state, standing.reason) != self._published:
            self._published = standing.state, standing.reason
            self._publisher.send(self._reports.status(standing))
        broker = self._publisher.state
        line = replace(standing, broker=None if broker.connected else broker).line
        if line != self._line:
            self._line = line
            self.systemd.status(line)
        if self._metrics:
            self._metrics.tell(state=standing.state.value, connected=broker.connected)

    def republish(self) -> None:
        """Say the present status again, and health at once, for the command `report`."""
        self._publisher.send(self._reports.status(self._standing))
        self._requested = True

    def report(self, now: float, seen: Conditions, throttle: Throttle) -> None:
        """Publish what is due. now: seconds in source time; seen: by the node's loop."""
        ends = self._reports.certificate.ends()
        self.set_status(seen.judge(self._publisher.state, ends, time.time()))
        if self._health_at is None:
            self._health_at = now
        span = now - self._health_at
        # Asked for at one instant of release, it leaves at the next.
        if span < (ANSWER_SECONDS if self._requested else self._every):
            return
        self._health_at, self._requested = now, False
        health = self._reports.health(span, seen, throttle, self._outbox)
        self._publisher.send(health)
        self._behind.tell(health.payload["recorders_behind"])
        if self._metrics:
            self._metrics.tell(health=health.payload)
