"""A command on its way to nodes, and what became of it: done is what a node said that it did.

One connection asks and hears the answers. A node is asked once; where the broker says that nobody
subscribes to the command, the node is not there, and nothing can come of it later.
"""

from __future__ import annotations

import enum
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from edge.base.clock import rfc3339
from edge.base.errors import BrokerError, UsageError
from edge.delivery.client import CONNECT_SECONDS, disconnect, loop_once
from edge.delivery.commands import Name
from edge.delivery.connection import Connector
from edge.delivery.messages import PREFIX, Command, Result, Status, as_dict, dumps, parse
from edge.delivery.subscriptions import Subscriptions
from edge.settings import Broker
from edge.watch.lines import LONG, printable

if TYPE_CHECKING:
    from edge.delivery.client import Client, MQTTMessage, ReasonCode

ANSWER_SECONDS = 10.0
LONGEST_SECONDS = 3600.0  # that an answer may be waited for
CLOCK_SECONDS = 60.0  # by which the node's clock may be beside this one's
SETTLE_SECONDS = 1.0  # without another retained status: all have come
NO_SUBSCRIBER = 0x10  # MQTT 5, 3.4.2.1
LONGEST_MINUTES = 366 * 24 * 60.0
PART = r"[a-z0-9*-]+"
TARGET = re.compile(rf"{PART}/{PART}(/{PART})?")
RESULT = re.compile(rf"{PREFIX}/([a-z0-9-]+/[a-z0-9-]+/[a-z0-9-]+)/cmd/[a-z-]+/result")
STATUS = re.compile(rf"{PREFIX}/([a-z0-9-]+/[a-z0-9-]+/[a-z0-9-]+)/status")


class Outcome(enum.Enum):
    """What became of a command at one node; the value is the word that people read."""

    DONE = "done"
    REFUSED = "refused"
    UNANSWERED = "no answer"


@dataclass(frozen=True, slots=True)
class Answer:
    """Of one node. text: the node's own words, made safe to print, or why there are none; taken:
    whether the broker took the command and stayed."""

    node: str
    outcome: Outcome
    text: str
    taken: bool = True


@dataclass(frozen=True, slots=True)
class Order:
    """A command with its arguments, in the units of the messages."""

    name: Name
    arguments: dict[str, float] = field(default_factory=dict)


def order(name: Name, amount: float | None = None) -> Order:
    """Make a command of what a person says.

    amount: minutes of a pause (None: until resumed), seconds of a window, people of a group; None for
    the others. Raises UsageError; what node.yaml forbids the node refuses itself."""
    if name == "pause":
        if amount is None:
            return Order(name)
        if not 0 < amount <= LONGEST_MINUTES:
            raise UsageError("a pause must be of more than 0 minutes and at most a year")
        return Order(name, {"seconds": round(60.0 * amount, 3) or 0.001})
    if name in ("set-window", "set-min-group"):
        unit = "seconds" if name == "set-window" else "people"
        if amount is None or not 0 < amount < 1e6:
            raise UsageError(f"{name} wants a number of {unit} above 0")
        return Order(name, {unit: float(amount)})
    if amount is not None:
        raise UsageError(f"{name} takes no number")
    return Order(name)


def check_target(text: str) -> str:
    """Return whom to ask: SITE/ROOM or SITE/ROOM/NODE, with `*` for any. Raises UsageError."""
    if not TARGET.fullmatch(text):
        raise UsageError(
            f"whom to ask is SITE/ROOM or SITE/ROOM/NODE in small letters, with * for any, such as "
            f"north/room-12 or 'north/*', not '{text:.80}'"
        )
    return text


def is_node(target: str) -> bool:
    """Tell whether a target names one node by itself."""
    return target.count("/") == 2 and "*" not in target


def matches(target: str, node: str) -> bool:
    """Tell whether a node is meant: part by part, all nodes of a room where none is named."""
    wanted, parts = target.split("/"), node.split("/")
    return all(fnmatchcase(part, want) for want, part in zip(wanted, parts, strict=False))


class Caller:
    """A connection that asks nodes, in the caller's thread. A context manager."""

    def __init__(self, settings: Broker, memory: Path | None = None) -> None:
        """memory: as of `Connector`. Raises BrokerError with the reason where there is no connection,
        SettingsError for unusable files."""
        connector = Connector(settings, memory, connack_timeout=CONNECT_SECONDS, quiet=True)
        client = connector.connect(f"edge-watch-{uuid.uuid4().hex[:8]}")
        if client is None:
            raise BrokerError(f"broker {settings.shown} {connector.status}; check address and user")
        self._client: Client = client
        self._url = settings.shown
        self._states: dict[str, str] = {}
        self._ids: dict[str, str] = {}  # node -> id of its command
        self._sent: dict[int, str] = {}  # mid -> node
        self._answers: dict[str, Answer] = {}
        client.on_message = self._on_message
        client.on_publish = self._on_publish

    def __enter__(self) -> Caller:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        disconnect(self._client)

    def nodes(self, target: str) -> list[str]:
        """Find the nodes that are meant: those of which the broker has a status. Raises BrokerError."""
        if is_node(target):
            return [target]
        parts = [*target.split("/"), "*"][:3]
        topic = "/".join("+" if "*" in part else part for part in parts)
        # QoS 0: a broker sends all at once, not so many as may be unacknowledged.
        self._subscribe(f"{PREFIX}/{topic}/status", 0)
        known, until = -1, 0.0
        while len(self._states) > known or time.monotonic() < until:
            if len(self._states) > known:
                known, until = len(self._states), time.monotonic() + SETTLE_SECONDS
            self._loop()
        return sorted(node for node in self._states if matches(target, node))

    def ask(
        self,
        nodes: Sequence[str],
        asked: Order,
        seconds: float = ANSWER_SECONDS,
        tell: Callable[[Answer], None] = lambda answer: None,
    ) -> list[Answer]:
        """Ask nodes by name, and wait for the answer of each for at most so many seconds. tell: is told
        each answer as it comes. Returns an answer a node, in their order. Raises BrokerError."""
        self._ids, self._sent, self._answers = {}, {}, {}
        told = 0
        where = nodes[0] if len(nodes) == 1 else "+/+/+"
        if len(nodes) == 1:
            self._subscribe(f"{PREFIX}/{where}/status", 0)
        self._subscribe(f"{PREFIX}/{where}/cmd/{asked.name}/result")
        expires = rfc3339(time.time() + seconds + CLOCK_SECONDS)
        for node in nodes:
            self._publish(node, asked, expires)
        deadline, stood = time.monotonic() + seconds, True
        while len(self._answers) < len(nodes) and time.monotonic() < deadline and stood:
            stood = loop_once(self._client, 0.05)
            for answer in list(self._answers.values())[told:]:
                tell(answer)
            told = len(self._answers)
        for node in nodes:
            if node not in self._answers:
                text = self._silent(node, seconds, expires, stood)
                self._answers[node] = Answer(node, Outcome.UNANSWERED, text, taken=stood)
                tell(self._answers[node])
        return [self._answers[node] for node in nodes]

    def _silent(self, node: str, seconds: float, expires: str, stood: bool) -> str:
        """Say what is known of a node that gave no answer."""
        if not stood:
            return f"the connection to the broker was lost; it may still be done until {expires}"
        state = self._states.get(node)
        status = f"its status is {state}" if state else "the broker has no status of it"
        return f"not within {seconds:g} s ({status}); it may still be done until {expires}"

    def _publish(self, node: str, asked: Order, expires: str) -> None:
        self._ids[node] = uuid.uuid4().hex
        command = Command(node=node, id=self._ids[node], expires=expires, arguments=asked.arguments)
        topic = f"{PREFIX}/{node}/cmd/{asked.name}"
        self._sent[self._client.publish(topic, dumps(as_dict(command)), qos=1).mid] = node

    def _subscribe(self, topic: str, qos: int = 1) -> None:
        heard = Subscriptions([topic], qos)
        heard.begin(self._client)
        # A cluster that elects a leader refuses for a moment.
        deadline = time.monotonic() + CONNECT_SECONDS
        while not heard.granted:
            if time.monotonic() > deadline:
                reason = heard.refusals.get(topic, "no answer")
                raise BrokerError(
                    f"broker {self._url} does not let this client hear answers ({reason}); check user "
                    "and access list"
                )
            self._loop()
            heard.poll(self._client)

    def _loop(self) -> None:
        if not loop_once(self._client, 0.05):
            raise BrokerError(f"broker {self._url} ended the connection; try again")

    def _on_publish(
        self, client: Client, userdata: Any, mid: int, reason: ReasonCode, properties: Any
    ) -> None:
        node = self._sent.get(mid)
        if node is None or node in self._answers:
            return
        if reason.is_failure:
            text = f"the broker did not pass it on ({reason}); check user and access list"
        elif reason.value == NO_SUBSCRIBER:
            state = self._states.get(node)
            status = f"; its last status is {state}" if state else ""
            text = f"it is not connected to the broker, nothing was done{status}"
        else:
            return
        taken = not reason.is_failure
        self._answers[node] = Answer(node, Outcome.UNANSWERED, text, taken)

    def _on_message(self, client: Client, userdata: Any, message: MQTTMessage) -> None:
        content = bytes(message.payload)
        if (found := STATUS.fullmatch(message.topic)) and content:
            status = _read(Status, content)
            if status is not None and status.node == found[1]:
                self._states[found[1]] = status.state
        elif found := RESULT.fullmatch(message.topic):
            result = _read(Result, content)
            if result is None or result.node != found[1] or message.retain:
                return
            # By its id: other answers of the node go by on this topic too.
            if self._ids.get(result.node) == result.id:
                outcome = Outcome.DONE if result.ok else Outcome.REFUSED
                text = printable(result.text, LONG)
                self._answers.setdefault(result.node, Answer(result.node, outcome, text))


def _read(kind: type[Any], content: bytes) -> Any:
    try:
        return parse(kind, content)
    except ValidationError:
        return None
