"""Messages -> stdout, one JSON object a line: what `--broker -` gives a script."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TextIO

from edge.delivery.connection_status import ConnectionStatus, connected
from edge.delivery.messages import Outgoing, dumps, readable
from edge.delivery.outbox import Outbox


@dataclass(slots=True)
class StdoutPublisher:
    """One JSON object a line: topic, qos, retain, payload. out: None writes none, for a terminal that
    a person reads."""

    outbox: Outbox
    out: TextIO | None
    state: ConnectionStatus = field(default_factory=lambda: connected("stdout"))
    commands: deque[tuple[str, bytes, bool]] = field(default_factory=deque)

    def alive(self) -> bool:
        return True

    def start(self) -> None:
        pass

    def _write(self, message: Outgoing) -> None:
        if self.out is None:
            return
        line = dumps(
            {
                "topic": message.topic,
                "qos": 1,
                "retain": message.retain,
                "payload": message.payload,
            }
        )
        self.out.write(line + "\n")
        self.out.flush()

    def send(self, message: Outgoing) -> None:
        self._write(message)

    def readings(self) -> None:
        for seq, payload in self.outbox.pending(limit=1000):
            if (message := readable(payload)) is None:
                self.outbox.reject(seq)
                continue
            self._write(message)
            self.outbox.acknowledge(seq)

    def finish(self, last: Outgoing, timeout: float, force_stop: threading.Event) -> int:
        self.readings()
        self._write(last)
        return self.outbox.pending_count()
