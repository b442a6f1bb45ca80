"""Messages > the broker or stdout.

Readings come from the outbox and leave it when the broker has acknowledged them; `status` and
`info` are retained and said again after each reconnect; `health` is not worth keeping.
"""

from __future__ import annotations

import logging
import random
import re
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import ValidationError

from edge.base.clock import plausible
from edge.base.errors import OutboxError
from edge.delivery.connection import (
    CONNECT_SECONDS,
    Address,
    ConnectionStatus,
    away,
    connected,
    describe_connect_error,
    mqtt_library,
    new_client,
    read_password,
    refused,
    secure,
    tls_context,
    turn,
)
from edge.delivery.messages import PREFIX, Ack, Outgoing, as_sent, dumps
from edge.delivery.outbox import Outbox
from edge.delivery.scheduler import SendScheduler
from edge.delivery.stdout import StdoutPublisher
from edge.settings import Broker

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 1.0
# A thousand nodes whose broker restarts lose it in one moment: they come back spread over this.
RETURN_SECONDS = 5.0
COMMANDS = 20  # that wait for the node's loop; a flood pushes out its own oldest
FIRST_ANSWER_SECONDS, LONGEST_ANSWER_SECONDS = 2.0, 32.0


def pause_after(connected: bool, pause: float, longest: float) -> float:
    """Seconds to wait, at random. connected: the connection stood and was lost; pause, longest: seconds
    of the growing pause while there is none."""
    if connected:
        return random.uniform(0.0, min(RETURN_SECONDS, longest))
    return pause * random.uniform(0.5, 1.0)


class Publisher(Protocol):
    """Where messages go; `state` says how the connection stands."""

    state: ConnectionStatus
    # Name and content of the commands that came, for the node's own loop to do.
    commands: deque[tuple[str, bytes]]

    def alive(self) -> bool: ...

    def start(self) -> None: ...

    def send(self, message: Outgoing) -> None:
        """Offer status, info or health; never blocks."""

    def readings(self) -> None:
        """The outbox holds something new."""

    def finish(self, last: Outgoing, timeout: float, force_stop: threading.Event) -> int:
        """Deliver what waits, then `last`, for at most `timeout` seconds or until `force_stop`; returns
        how many readings were not acknowledged."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """A message on its way. seq, log: of a reading, else 0 and ""; time: monotonic."""

    kind: str
    seq: int
    log: str
    time: float


class MqttPublisher:
    """One thread owns the connection. MQTT 5, and 3.1.1 where the broker knows nothing newer."""

    def __init__(
        self,
        settings: Broker,
        client_id: str,
        will: Outgoing,
        outbox: Outbox,
    ) -> None:
        """client_id: the same at every start of one node, so that a reconnect takes the old session
        over and its will goes out before the new status, not after it. will: published by the
        broker when this node vanishes. Raises SettingsError for unusable files."""
        self._mqtt = mqtt_library()
        self._address = Address(settings.url)
        self._settings, self._client_id, self._will = settings, client_id, will
        self._outbox = outbox
        self._password = read_password(settings.password_file)
        self._context = tls_context(settings.tls) if self._address.secure else None
        self._version = self._mqtt.MQTTv5
        self._retained: dict[str, Outgoing] = {}
        self._queue: deque[Outgoing] = deque(maxlen=100)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._last: Outgoing | None = None
        self._deadline = 0.0
        self.state = ConnectionStatus()
        self._sent: dict[int, _Sent] = {}  # by message id, oldest first
        self._scheduler = SendScheduler(outbox)
        self.commands: deque[tuple[str, bytes]] = deque(maxlen=COMMANDS)
        self._strange_acks = 0
        self._connack: str | None = None
        self._refusals: dict[str, str] = {}  # kind > the broker's reason
        self._last_mid: int | None = None
        self._patience = FIRST_ANSWER_SECONDS

    def start(self) -> None:
        self._thread.start()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def send(self, message: Outgoing) -> None:
        with self._lock:
            if message.retain:
                self._retained[message.kind] = message
            self._queue.append(message)

    def readings(self) -> None:
        pass  # the thread looks into the outbox itself

    def finish(self, last: Outgoing, timeout: float, force_stop: threading.Event) -> int:
        self._last, self._deadline = last, time.monotonic() + timeout
        self._stop.set()
        while self.alive() and time.monotonic() < self._deadline + CONNECT_SECONDS:
            if force_stop.wait(0.1):
                self._deadline = time.monotonic()
                self._thread.join(2.0)
                break
        return self._outbox.pending_count()

    # The thread.

    def _change(self, state: ConnectionStatus) -> None:
        if state != self.state:
            self.state = state
            level = logging.INFO if state.connected else logging.WARNING
            log.log(level, "broker %s address=%s", state, self._settings.url)

    def _run(self) -> None:
        pause, longest = FIRST_PAUSE_SECONDS, self._settings.retry_max_seconds
        while not (self._stop.is_set() and time.monotonic() >= self._deadline):
            try:
                was_up = self._connect_once()
            except OutboxError as error:
                log.error("publisher stopped: %s", error)
                return
            if was_up is None:
                return
            pause = FIRST_PAUSE_SECONDS if was_up else min(2 * pause, longest)
            self._wait(pause_after(was_up, pause, longest))

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._stop.wait(min(left, 0.2)):
                time.sleep(0.2)  # the end is near: try again at once while the deadline allows
                return

    def _client(self) -> Any:
        client = new_client(self._mqtt, self._settings, self._client_id, self._version)
        secure(client, self._settings, self._password, self._context)
        client.will_set(self._will.topic, dumps(self._will.payload), qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        return client

    def _on_connect(
        self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any
    ) -> None:
        self._connack = str(reason) if reason.is_failure else ""

    def _on_publish(
        self, client: Any, userdata: Any, mid: int, reason: Any, properties: Any
    ) -> None:
        sent = self._sent.pop(mid, _Sent("", 0, "", 0.0))
        kind, seq, log_id = sent.kind, sent.seq, sent.log
        if reason.is_failure:
            # The broker took the connection but not the topic: stay, say so, offer again later.
            self._refusals[kind] = str(reason)
            if seq:
                self._scheduler.refused(seq, log_id)
        else:
            self._refusals.pop(kind, None)
            if seq:
                self._note(lambda: self._scheduler.acknowledged(seq, log_id))
        if mid == self._last_mid:
            self._last, self._last_mid = None, None
        self._change(self._standing())

    def _on_subscribe(
        self, client: Any, userdata: Any, mid: int, reasons: Any, properties: Any
    ) -> None:
        for topic, reason in zip(("ack", "cmd"), reasons, strict=False):
            if reason.is_failure:
                self._refusals[topic] = str(reason)
        self._change(self._standing())

    def _on_message(self, client: Any, userdata: Any, message: Any) -> None:
        """A command, for the node's loop; or a recorder's ack."""
        kind = message.topic.removeprefix(f"{PREFIX}/{self._will.payload['node']}/")
        if kind.startswith("cmd/"):
            name = kind.removeprefix("cmd/")
            # Its answer's topic holds the name, and so does the file of what was done.
            if re.fullmatch(r"[a-z-]{1,32}", name):
                self.commands.append((name, bytes(message.payload)))
            return
        try:
            ack = Ack.model_validate_json(message.payload)
        except ValidationError:
            ack = None
        if ack is None or ack.node != self._will.payload["node"]:
            self._strange_acks += 1
            if self._strange_acks == 1:
                log.warning("an ack that is none of ours, or malformed, was ignored")
            return
        self._note(lambda: self._scheduler.on_recorder_ack(ack.seq, ack.log))

    @staticmethod
    def _note(mark: Callable[[], None]) -> None:
        try:
            mark()
        except OutboxError as error:
            log.error("%s; it will be offered again", error)

    def _standing(self) -> ConnectionStatus:
        if self._refusals:
            kind, reason = next(iter(sorted(self._refusals.items())))
            return refused(f"{kind} ({reason})")
        return connected(f"MQTT {self._version_name()}")

    def _connect_once(self) -> bool | None:
        """One connection from start to end. True: it was up; False: it never was; None: all done."""
        if self._context is not None and not plausible(time.time()):
            # Every certificate is out of its time then, and a stolen old one would be in it.
            self._change(
                away(f"the clock says {time.strftime('%Y-%m-%d')}, TLS waits for the time")
            )
            return False
        client = self._client()
        self._sent, self._connack = {}, None
        self._refusals, self._last_mid = {}, None
        self._scheduler.connected()
        try:
            client.connect(
                self._address.host,
                self._address.port,
                keepalive=self._settings.keepalive_seconds,
            )
        except (OSError, ssl.SSLError) as error:
            self._change(describe_connect_error(error))
            return False
        try:
            result = self._converse(client)
        except OutboxError:
            # Without a DISCONNECT, so that the broker says `lost`: this node cannot go on.
            if (connection := client.socket()) is not None:
                connection.close()
            raise
        client.loop_write()
        client.disconnect()
        turn(client, 0.05)
        return result

    def _converse(self, client: Any) -> bool | None:
        began = time.monotonic()
        while self._connack is None:
            if not turn(client, 0.1) and self._connack is None:
                self._other_version()
                self._change(away("closed the connection without an answer"))
                return False
            if time.monotonic() - began > self._patience:
                # Some 3.1.1 brokers choke on MQTT 5 without a word (amqtt 0.12 does, on a will);
                # others are slow: try the other version, and wait longer each time.
                self._other_version()
                self._change(
                    away(
                        f"silent for {self._patience:.0f} s after connecting; "
                        f"trying MQTT {self._version_name()}"
                    )
                )
                self._patience = min(2 * self._patience, LONGEST_ANSWER_SECONDS)
                return False
        if self._connack:
            if "protocol version" in self._connack.lower():
                self._other_version()
            self._change(refused(self._connack))
            return False
        with self._lock:
            self._queue = deque(
                [m for m in self._queue if not m.retain and m.kind != "health"], maxlen=100
            )
            self._queue.extend(self._retained.values())
        self._patience = FIRST_ANSWER_SECONDS
        own = f"{PREFIX}/{self._will.payload['node']}"
        client.subscribe([(f"{own}/ack", 1), (f"{own}/cmd/+", 1)])
        self._change(self._standing())
        while True:
            self._offer(client)
            if not turn(client, 0.05):
                self._change(away("the connection was lost"))
                return True
            if self._unanswered():
                # An acknowledgement that got lost on a link that stands never comes, and some such
                # would fill every place in flight.
                self._change(away("it acknowledges nothing any more"))
                return True
            if self._stop.is_set() and self._end(client):
                return None

    def _unanswered(self) -> bool:
        """Whether the oldest message on its way has waited for longer than a dead link is believed."""
        oldest = next(iter(self._sent.values()), None)
        patience = 1.5 * self._settings.keepalive_seconds
        return oldest is not None and time.monotonic() - oldest.time > patience

    def _offer(self, client: Any) -> None:
        with self._lock:
            messages = list(self._queue)
            self._queue.clear()
        for message in messages:
            self._publish(client, message)
        for seq, payload in self._scheduler.next():
            self._publish(client, as_sent(payload), seq, payload["log"])

    def _publish(self, client: Any, message: Outgoing, seq: int = 0, log_id: str = "") -> int:
        info = client.publish(message.topic, dumps(message.payload), qos=1, retain=message.retain)
        self._sent[info.mid] = _Sent(message.kind, seq, log_id, time.monotonic())
        return int(info.mid)

    def _end(self, client: Any) -> bool:
        """Whether all is said; the last status goes out when the outbox is empty or time is up."""
        late = time.monotonic() >= self._deadline
        if self._outbox.pending_count() and not late:
            return False
        if self._last is None:
            return True  # said, and acknowledged
        if self._last_mid is None:
            self._last_mid = self._publish(client, self._last)
            self._deadline = max(self._deadline, time.monotonic() + 2.0)
            return False
        return late

    def _version_name(self) -> str:
        return "5" if self._version == self._mqtt.MQTTv5 else "3.1.1"

    def _other_version(self) -> None:
        five, three = self._mqtt.MQTTv5, self._mqtt.MQTTv311
        self._version = three if self._version == five else five


def open_publisher(settings: Broker, client_id: str, will: Outgoing, outbox: Outbox) -> Publisher:
    """The publisher that `settings.url` names."""
    if settings.url == "-":
        return StdoutPublisher(outbox, sys.stdout)
    return MqttPublisher(settings, client_id, will, outbox)
