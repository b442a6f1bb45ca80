"""Messages -> the broker or stdout.

Readings come from the outbox and leave it when the broker has acknowledged them; `status` and
`info` are retained and said again after each reconnect; `health` is not worth keeping.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from edge.base.backoff import Backoff
from edge.base.errors import OutboxError
from edge.delivery.answers import Answers
from edge.delivery.client import CONNECT_SECONDS, disconnect, loop_once
from edge.delivery.connection import Connector, reconnect_delay
from edge.delivery.connection_status import ConnectionStatus, away, connected, refused
from edge.delivery.inbox import Inbox
from edge.delivery.messages import PREFIX, Ack, Outgoing, dumps, readable
from edge.delivery.outbox import Outbox
from edge.delivery.protocol import MEMORY_FILE
from edge.delivery.scheduler import SendScheduler
from edge.delivery.stdout import StdoutPublisher
from edge.delivery.subscriptions import Subscriptions
from edge.settings import Broker

if TYPE_CHECKING:
    from edge.delivery.client import Client, MQTTMessage, Properties, ReasonCode

log = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS = 1.0
# A connection hears the retained `ack` before it offers readings: where that names numbers that this
# outbox has not reached, they go out under a new log from the first.
LISTEN_SECONDS = 0.5


class Publisher(Protocol):
    """Where messages go; `state` says how the connection stands."""

    # For the node's own loop: name and content of each command that came, and whether it was retained.
    commands: deque[tuple[str, bytes, bool]]

    @property
    def state(self) -> ConnectionStatus: ...

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
    """A message on its way. seq, log_id: of a reading, else 0 and ""; time: monotonic."""

    kind: str
    seq: int
    log_id: str
    time: float


class _Announcements:
    """What is said besides readings; what is retained is said again on each connection."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._retained: dict[str, Outgoing] = {}
        self._queue: deque[Outgoing] = deque(maxlen=100)
        self._ended = False

    def add(self, message: Outgoing) -> None:
        with self._lock:
            if self._ended:
                return
            if message.retain:
                self._retained[message.kind] = message
            self._queue.append(message)

    def start_over(self) -> None:
        """A new connection: no old health, and the present state of what is retained."""
        with self._lock:
            kept = [m for m in self._queue if not m.retain and m.kind != "health"]
            self._queue = deque([*kept, *self._retained.values()], maxlen=100)

    def end(self, last: Outgoing) -> list[Outgoing]:
        """Return what is still to be said, ending with `last`, the last status. Nothing is said after
        it, and on a new connection no older one."""
        with self._lock:
            self._ended, messages = True, list(self._queue)
            self._queue.clear()
            self._retained[last.kind] = last
        return [*messages, last]

    def take(self) -> list[Outgoing]:
        with self._lock:
            messages = list(self._queue)
            self._queue.clear()
        return messages


def _try_mark(mark: Callable[[], None]) -> None:
    try:
        mark()
    except OutboxError as error:
        log.error("%s; it will be offered again", error)


def _take(scheduler: SendScheduler, fresh: bool) -> Iterator[tuple[int, str, Outgoing]]:
    """What to send now, as seq, log and message; what is no reading is set aside."""
    for seq, payload in scheduler.next(fresh):
        if (message := readable(payload)) is None:
            scheduler.rejected(seq, payload["log"])
        else:
            yield seq, payload["log"], message


class MqttPublisher:
    """Publishes on a connection that one thread owns, and makes again when it is lost."""

    def __init__(self, settings: Broker, client_id: str, will: Outgoing, outbox: Outbox) -> None:
        """client_id: the same at every start of one node, so that a reconnect takes the old session
        over and its will goes out before the new status, not after it. will: published by the
        broker when this node vanishes. Raises SettingsError for unusable files."""
        self._connector = Connector(settings, outbox.path.with_name(MEMORY_FILE))
        self._settings, self._client_id, self._will = settings, client_id, will
        self._topic = f"{PREFIX}/{will.payload['node']}/"
        self._outbox = outbox
        self._announcements = _Announcements()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._last: Outgoing | None = None
        self._deadline = 0.0
        self._sent: dict[int, _Sent] = {}  # by message id, oldest first
        self._scheduler, self._answers = SendScheduler(outbox), Answers()
        self._inbox = Inbox(will.payload["node"], self._on_ack)
        self.commands = self._inbox.commands
        self._subscriptions = Subscriptions([f"{self._topic}ack", f"{self._topic}cmd/+"])
        self._refusals: dict[str, str] = {}  # kind -> the broker's reason
        self._last_mid: int | None = None

    @property
    def state(self) -> ConnectionStatus:
        return self._connector.status

    def start(self) -> None:
        self._thread.start()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def send(self, message: Outgoing) -> None:
        self._announcements.add(message)

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

    def _run(self) -> None:
        longest = self._settings.retry_max_seconds
        backoff = Backoff(FIRST_BACKOFF_SECONDS, longest)
        while not (self._stop.is_set() and time.monotonic() >= self._deadline):
            try:
                was_up = self._connect_once()
            except OutboxError as error:
                log.error("publisher stopped: %s", error)
                return
            if was_up is None:
                return
            self._wait(reconnect_delay(was_up, backoff, longest))

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._stop.wait(min(left, 0.2)):
                time.sleep(0.2)  # the end is near: try again at once while the deadline allows
                return

    def _prepare(self, client: Client) -> None:
        retain, will = self._connector.retains, self._will
        client.will_set(will.topic, dumps(will.payload), qos=1, retain=retain)
        client.on_publish = self._on_publish
        client.on_message = self._on_message

    def _on_publish(
        self, client: Client, userdata: Any, mid: int, reason: ReasonCode, properties: Properties
    ) -> None:
        sent = self._sent.pop(mid, _Sent("", 0, "", 0.0))
        if reason.is_failure:
            # The broker took the connection but not the topic: stay, say so, offer again later.
            self._refusals[sent.kind] = str(reason)
            if sent.seq:
                self._scheduler.refused(sent.seq, sent.log_id)
        else:
            self._refusals.pop(sent.kind, None)
            if sent.seq:
                self._answers.sent()
                _try_mark(lambda: self._scheduler.acknowledged(sent.seq, sent.log_id))
        if mid == self._last_mid:
            self._last, self._last_mid = None, None

    def _on_message(self, client: Client, userdata: Any, message: MQTTMessage) -> None:
        kind = message.topic.removeprefix(self._topic)
        if kind == "ack" and not message.retain:
            self._answers.heard()
        self._inbox.take(kind, bytes(message.payload), bool(message.retain))

    def _on_ack(self, ack: Ack) -> None:
        _try_mark(lambda: self._scheduler.on_recorder_ack(ack.seq, ack.log, ack.recorder))

    def _update_state(self) -> None:
        unheard = self._subscriptions.refusals.items()
        deaf = {topic.removeprefix(self._topic).split("/")[0]: why for topic, why in unheard}
        if refusals := deaf | self._refusals:
            kind, reason = min(refusals.items())
            self._connector.change(refused(f"{kind} ({reason})"))
        elif self._subscriptions.granted:  # not before: who hears nothing is not connected
            self._connector.change(connected(f"MQTT {self._connector.version}"))

    def _connect_once(self) -> bool | None:
        """One connection from start to end. True: it was up; False: it never was; None: all done."""
        self._sent, self._refusals, self._last_mid = {}, {}, None
        self._scheduler.connected()
        client = self._connector.connect(self._client_id, self._prepare)
        if client is None:
            return False
        try:
            result = self._run_session(client)
        except OutboxError:
            # Without a DISCONNECT, so that the broker says `lost`: this node cannot go on.
            if (connection := client.socket()) is not None:
                connection.close()
            raise
        client.loop_write()
        disconnect(client)
        return result

    def _run_session(self, client: Client) -> bool | None:
        self._announcements.start_over()
        self._listen_until = time.monotonic() + LISTEN_SECONDS
        self._subscriptions.begin(client)
        self._answers.connected()
        while True:
            self._subscriptions.poll(client)
            self._offer(client)
            if not loop_once(client, 0.05):
                remedy = "give each node a name of its own"
                self._connector.lost(client, remedy, self._subscriptions.ended())
                return True
            self._update_state()
            self._answers.check(self._outbox.stored is not None)
            if self._answers.deaf(self._outbox.stored is not None):
                self._connector.change(
                    away("no recorder is heard on this connection, a new one is made")
                )
                return True
            if self._unanswered():
                # An acknowledgement that got lost on a link that stands never comes, and some such
                # would fill every place in flight.
                self._connector.change(away("it acknowledges nothing any more"))
                return True
            if self._stop.is_set() and self._end(client):
                return None

    def _unanswered(self) -> bool:
        """Whether the oldest message on its way has waited for longer than a dead link is believed."""
        oldest = next(iter(self._sent.values()), None)
        longest = 1.5 * self._settings.keepalive_seconds
        return oldest is not None and time.monotonic() - oldest.time > longest

    def _offer(self, client: Client) -> None:
        release = self._inbox.release() or self._stop.is_set()
        if release:
            for message in self._announcements.take():
                self._publish(client, message)
        if time.monotonic() >= self._listen_until:
            for seq, log_id, message in _take(self._scheduler, release):
                self._publish(client, message, seq, log_id)

    def _publish(self, client: Client, message: Outgoing, seq: int = 0, log_id: str = "") -> int:
        retain = message.retain and self._connector.retains
        info = client.publish(message.topic, dumps(message.payload), qos=1, retain=retain)
        self._sent[info.mid] = _Sent(message.kind, seq, log_id, time.monotonic())
        return int(info.mid)

    def _end(self, client: Client) -> bool:
        """Whether all is said; the last status goes out when the outbox is empty or time is up."""
        late = time.monotonic() >= self._deadline
        if self._outbox.pending_count() and not late:
            return False
        if self._last is None:
            return True  # said, and acknowledged
        if self._last_mid is None:
            # What was said while this thread waited for the broker goes before it, never after it.
            for message in self._announcements.end(self._last):
                self._last_mid = self._publish(client, message)
            self._deadline = max(self._deadline, time.monotonic() + 2.0)
            return False
        return late


def open_publisher(
    settings: Broker, client_id: str, will: Outgoing, outbox: Outbox, lines: bool = True
) -> Publisher:
    """The publisher that `settings.url` names. lines: whether `-` writes any."""
    if not settings.urls:
        return StdoutPublisher(outbox, sys.stdout if lines else None)
    return MqttPublisher(settings, client_id, will, outbox)
