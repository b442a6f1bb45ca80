"""Whether a broker's shared subscriptions deliver: some grant them and pass nothing on, so that a
recorder of a group looks connected and stores nothing."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edge.base.errors import BrokerError
from edge.delivery.client import disconnect, loop_once
from edge.delivery.connection import Connector
from edge.delivery.messages import PREFIX
from edge.settings import Broker

if TYPE_CHECKING:
    from edge.delivery.client import Client

PROBE_SECONDS = 10.0
INSTEAD = "give each recorder a --part K/N in place of --group, or a --site"


class GroupProbe:
    """Proves it once, on a connection of its own, in a group of its own."""

    def __init__(
        self,
        settings: Broker,
        memory: Path | None = None,
        seconds: float = PROBE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """memory: as of Connector; seconds: how long a message may take. Raises SettingsError."""
        self._settings, self._seconds, self._clock = settings, seconds, clock
        self._connector = Connector(settings, memory, quiet=True)
        self._closed = 0

    def prove(self, stop: threading.Event) -> bool:
        """Send a message to oneself; return False where there is no connection just now. Raises
        BrokerError where the broker refuses or delivers nothing."""
        name = uuid.uuid4().hex[:12]
        # A topic that the kit's access list lets a recorder read and write.
        topic = f"{PREFIX}/edge-watch/probe/{name}/ack"
        came: list[str] = []
        codes: list[bool] = []

        def prepare(client: Client) -> None:
            client.on_message = lambda c, u, m: came.append(m.topic)
            client.on_subscribe = lambda c, u, mid, reasons, p: codes.extend(
                reason.is_failure for reason in reasons
            )

        client = self._connector.connect(f"edge-watch-{name}", prepare, stop)
        if client is None:
            return False
        try:
            client.subscribe(f"$share/{name}/{topic}", qos=1)
            deadline, sent = self._clock() + self._seconds, False
            while not (came or stop.is_set()):
                if not loop_once(client, 0.05):
                    self._closed += not codes
                    if self._closed > 1:  # once may be a broker that is being restarted
                        raise self._error("ends the connection at")
                    return False
                if any(codes):
                    raise self._error("refuses")
                if codes and not sent:
                    sent = True
                    client.publish(topic, b"{}", qos=1)
                if self._clock() > deadline:
                    raise self._error("grants" if codes else "does not answer")
            return bool(came)
        finally:
            disconnect(client)

    def _error(self, does: str) -> BrokerError:
        but = " and delivers nothing through it" if does == "grants" else ""
        return BrokerError(
            f"broker {self._settings.shown} {does} a shared subscription{but}; {INSTEAD}"
        )
