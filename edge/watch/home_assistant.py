"""Rooms as devices of Home Assistant: one retained MQTT device discovery configuration a node.

    info -> configuration on PREFIX/device/ID/config;  retired, or info deleted -> an empty one

Home Assistant then reads the node's own messages; the recorder adds no other message of its own. See
https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload (of Home Assistant 2024.12
or later).

A label is a node's text, and Home Assistant runs templates: into one a label goes as a string
(`literal`), so that it can be nothing but text there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import edge
from edge.base.errors import UsageError
from edge.delivery.messages import PREFIX, Info, dumps
from edge.records import OTHER, UNCLASSIFIED
from edge.watch.lines import SHORT, printable
from edge.watch.messages import TOPIC, Message
from edge.watch.rooms import MOST_NODES, MOST_SECONDS, SILENT_SECONDS, SILENT_WINDOWS

if TYPE_CHECKING:
    from edge.watch.database import Database

log = logging.getLogger(__name__)

USUAL_PREFIX = "homeassistant"
CONFIGURATIONS = "device/+/config"  # below the prefix
# Printable ASCII without what MQTT, or the access list of `edge-watch broker`, reads another way.
PREFIX_PATTERN = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")
LONGEST_PREFIX = 100
# Of one node, so that the longest names still make a message that the broker takes.
MOST_CELLS = 24
LONGEST_LABEL = 64  # as the schema of `counts` has it
LONGEST_KEY = 32
SYNTAX = frozenset("\\'\"{}%#")  # of Jinja, or of its strings
COMMANDS = ("pause", "resume")
COMMAND_SECONDS = 70  # until a press expires: who waits for an answer longer has pressed again
QOS = 1

# A reading that comes late is in the recorder and does not overwrite what is newer: an empty text
# changes nothing. `None` is Home Assistant's "unknown". It takes the message for a sign of life all the
# same, and would show again what had expired, or was unavailable: of that nothing is known.
NOT_LATE = "{% if not value_json.historical %}"
LATE = "{% elif this.state == 'unavailable' %}{{ none }}{% endif %}"
PEOPLE = NOT_LATE + "{{ value_json.faces.mean if value_json.faces is mapping else none }}" + LATE
SHARE = (
    NOT_LATE
    + "{% set times = value_json.person_seconds or {} %}{% set all = times.values() | sum %}"
    + "{{ (100 * times[LABEL] / all) | round(1) if all and LABEL in times else none }}"
    + LATE
)
AVAILABLE = "{{ 'online' if value_json.state in ('online', 'degraded') else 'offline' }}"
# By Home Assistant's own clock, since a node's may be wrong, and by the minute, or every message would
# be a row of its history. `status` is retained: what it says of itself counts only where nothing else
# is known, as after a start. A time, unlike a number, cannot be left out: it is said again.
LAST_SEEN = (
    "{% set known = this.state not in ('unknown', 'unavailable') %}"
    "{% if value_json.schema.startswith(('edge.counts/', 'edge.health/')) %}"
    "{{ utcnow().replace(second=0, microsecond=0).isoformat() }}"
    "{% elif value_json.schema.startswith('edge.status/') and value_json.time is defined"
    " and not known %}{{ value_json.time }}"
    "{% else %}{{ this.state if known else none }}{% endif %}"
)
REASON = "{{ {'reason': value_json.reason | default(none)} | tojson }}"
COMMAND = (
    '{"schema":"edge.cmd/1","node":"NODE",'
    '"id":"ha-{{ utcnow().strftime(\'%Y%m%dT%H%M%S%f\') }}",'
    '"expires":"{{ (utcnow() + timedelta(seconds=SECONDS)).strftime(\'%Y-%m-%dT%H:%M:%S.000Z\') }}",'
    '"arguments":{}}'
)


def home_assistant_option(p: argparse.ArgumentParser) -> None:
    """Add the recorder's option."""
    p.add_argument(
        "--home-assistant",
        nargs="?",
        const=USUAL_PREFIX,
        metavar="PREFIX",
        help="with --record: rooms as devices of Home Assistant, by its MQTT discovery below this "
        f"topic ({USUAL_PREFIX} where no PREFIX is given)",
    )


def check_home_assistant(args: argparse.Namespace) -> None:
    """Check what goes with the option. Raises UsageError."""
    if args.home_assistant is None:
        return
    check_prefix(args.home_assistant)
    if not args.record:
        raise UsageError("--home-assistant goes with --record, whose database knows retired rooms")
    if args.group:
        raise UsageError(
            "--group hears a part of the messages: give --home-assistant to a recorder without it"
        )


def open_discovery(
    prefix: str | None, publish: Callable[[str, str], bool], store: Database
) -> Discovery | None:
    """Make what the recorder calls; None without a prefix. publish: as of Discovery."""
    from edge.watch.retire import retired_nodes

    return None if prefix is None else Discovery(prefix, publish, lambda: retired_nodes(store))


def check_prefix(text: str) -> str:
    """Return Home Assistant's discovery prefix. Raises UsageError."""
    own = f"{text}/".startswith(f"{PREFIX.split('/')[0]}/")
    if own or len(text) > LONGEST_PREFIX or not PREFIX_PATTERN.fullmatch(text):
        raise UsageError(
            f"--home-assistant wants the discovery prefix of Home Assistant's MQTT integration, such "
            f"as {USUAL_PREFIX}: letters, digits, '_', '-' and '.', with '/' between, at most "
            f"{LONGEST_PREFIX} characters and outside of edge/, not '{printable(text, 80)}'"
        )
    return text


def device_id(node: str) -> str:
    """Name a node where no `/` may stand. Node names have no `_`: so a/b-c and a-b/c stay two."""
    return f"edge_{node.replace('/', '_')}"


def configuration_topic(prefix: str, node: str) -> str:
    return f"{prefix}/{CONFIGURATIONS.replace('+', device_id(node))}"


def literal(text: str) -> str:
    """Write text as a string of a Jinja template, whatever is in it."""
    plain = (c if c.isprintable() and c not in SYNTAX else f"\\U{ord(c):08x}" for c in text)
    return f"'{''.join(plain)}'"


def key_of(label: str) -> str:
    """Name a label's entity; no two have one name."""
    plain = "".join(c if c.isascii() and c.isalnum() else f"_{ord(c):x}_" for c in label)
    if len(plain) > LONGEST_KEY:
        plain = f"_{hashlib.sha256(label.encode(errors='surrogatepass')).hexdigest()[:LONGEST_KEY]}"
    return f"share_{plain}"


def cells(labels: Sequence[str]) -> list[str]:
    """List the cells of a node's readings that get an entity."""
    own = [label for label in labels if len(label) <= LONGEST_LABEL]
    own = list(dict.fromkeys([*own, UNCLASSIFIED, OTHER]))
    return own if len(own) <= MOST_CELLS else [*own[: MOST_CELLS - 2], UNCLASSIFIED, OTHER]


def patience(window_seconds: float) -> int:
    """Return after how many seconds without a reading the last one says nothing any more, as on the
    page."""
    window = window_seconds if 0 < window_seconds <= MOST_SECONDS else 0.0
    return round(max(SILENT_SECONDS, SILENT_WINDOWS * window))


def configuration(info: Info) -> dict[str, Any]:
    """Make the device discovery configuration of one node."""
    node = info.node
    site, room, _ = node.split("/")
    topic, own = f"{PREFIX}/{node}", device_id(node)
    available = {
        "availability_topic": f"{topic}/status",
        "availability_template": AVAILABLE,
    }
    counted = {
        "platform": "sensor",
        "state_topic": f"{topic}/counts",
        "state_class": "measurement",
        "expire_after": patience(info.window_seconds),
        **available,
    }
    components: dict[str, dict[str, Any]] = {
        "people": {
            **counted,
            "name": "People",
            "icon": "mdi:account-group",
            "unit_of_measurement": "people",
            "suggested_display_precision": 0,
            "value_template": PEOPLE,
        }
    }
    for label in cells(info.model.labels):
        components[key_of(label)] = {
            **counted,
            "name": f"{printable(label, LONGEST_LABEL)} share",
            "icon": "mdi:chart-donut",
            "unit_of_measurement": "%",
            "suggested_display_precision": 0,
            "value_template": SHARE.replace("LABEL", literal(label)),
        }
    # These two speak of rooms that are gone, too.
    components["status"] = {
        "platform": "sensor",
        "name": "Status",
        "device_class": "enum",
        "options": ["starting", "online", "degraded", "stopped", "lost"],
        "entity_category": "diagnostic",
        "state_topic": f"{topic}/status",
        "value_template": "{{ value_json.state }}",
        "json_attributes_topic": f"{topic}/status",
        "json_attributes_template": REASON,
    }
    components["last_seen"] = {
        "platform": "sensor",
        "name": "Last seen",
        "device_class": "timestamp",
        "entity_category": "diagnostic",
        "state_topic": f"{topic}/+",
        "value_template": LAST_SEEN,
    }
    for name, icon in zip(COMMANDS, ("mdi:pause", "mdi:play"), strict=True):
        components[name] = {
            "platform": "button",
            "name": name.capitalize(),
            "icon": icon,
            "command_topic": f"{topic}/cmd/{name}",
            "command_template": COMMAND.replace("NODE", node).replace(
                "SECONDS", str(COMMAND_SECONDS)
            ),
            **available,
        }
    for key, component in components.items():
        component["unique_id"] = f"{own}_{key}"
        component["qos"] = QOS
    return {
        "device": {
            "identifiers": [own],
            "name": node,
            "manufacturer": "Classroom node kit",
            "model": f"Node that counts expressions ({printable(info.model.backend, SHORT)})",
            "sw_version": printable(info.versions.get("edge", "unknown"), SHORT),
            "suggested_area": f"{site} {room}",
        },
        "origin": {"name": "edge-watch", "sw_version": edge.__version__},
        "components": components,
    }


def removing(text: str, shown: frozenset[str]) -> tuple[str, frozenset[str]]:
    """Add to a configuration what removes the entities that it has no more. Home Assistant keeps the
    entity of a component that is merely left out, and deletes that of one with nothing but a platform.

    shown: the components of the configuration before. Returns the text, "" as it is, and its own.
    """
    if not text:
        return text, frozenset()
    found = json.loads(text)
    own = frozenset(found["components"])
    # Only a label's entity ever goes, and that is a sensor.
    found["components"].update({key: {"platform": "sensor"} for key in sorted(shown - own)})
    return dumps(found), own


class Discovery:
    """Keeps the configurations at the broker as the nodes are; all in the receiver's thread."""

    def __init__(
        self,
        prefix: str,
        publish: Callable[[str, str], bool],
        retired: Callable[[], frozenset[str]],
    ) -> None:
        """publish: topic and text, retained; tells whether there is a connection. retired: which nodes
        are, or raises StoreError."""
        self._prefix, self._publish, self._retired = prefix, publish, retired
        self._wanted: dict[str, str] = {}  # node -> configuration; "" where its info was deleted
        self._said: dict[str, str] = {}  # what this connection published
        self._shown: dict[str, frozenset[str]] = {}  # the components of what was published last

    def hear(self, topic: str, raw: bytes, message: Message | None) -> None:
        """Take in a message. message: None for what is none, such as retained info that is deleted."""
        if message is None:
            found = None if raw else TOPIC.fullmatch(topic)
            if found is not None and found[2] == "info":
                self._want(found[1], "")
        elif isinstance(message.payload, Info):
            self._want(message.node, dumps(configuration(message.payload)))

    def _want(self, node: str, text: str) -> None:
        if node in self._wanted or len(self._wanted) < MOST_NODES:
            self._wanted[node] = text

    def turn(self) -> None:
        """Publish what differs from what was published; for every few seconds. Raises StoreError."""
        retired = self._retired()
        wanted = {**self._wanted, **dict.fromkeys(sorted(retired), "")}
        for node, text in wanted.items():
            if self._said.get(node) == text:
                continue
            whole, own = removing(text, self._shown.get(node, frozenset()))
            if not self._publish(configuration_topic(self._prefix, node), whole):
                return
            self._said[node], self._shown[node] = text, own
            log.debug("home assistant node=%s %s", node, "configured" if text else "withdrawn")

    def reset(self) -> None:
        """A connection is gone, and nodes are heard anew on the next: the broker may have lost all."""
        self._wanted.clear()
        self._said.clear()
