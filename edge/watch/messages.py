"""Bytes on a topic -> one of the kit's messages, or the reason why they are refused.

What a node claims is held against where it says it: a message under another node's name is refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Union

from pydantic import ValidationError

from edge.base.clock import parse_rfc3339
from edge.delivery.messages import PREFIX, Counts, Faces, Health, Info, Status, parse

LARGEST_BYTES = 64 * 1024
# The same complaint is logged this often, each time after ten times as many.
WARN_AT = (1, 10, 100, 1000, 10_000, 100_000, 1_000_000)
KINDS: dict[str, type[Counts] | type[Status] | type[Info] | type[Health]] = {
    "counts": Counts,
    "status": Status,
    "info": Info,
    "health": Health,
}
TOPIC = re.compile(rf"{PREFIX}/([a-z0-9-]+/[a-z0-9-]+/[a-z0-9-]+)/([a-z/-]+)")
# What a newer version added has a default, so a message of an older one reads as it.
RENEWED = {
    "counts": (b'"edge.counts/1"', b'"edge.counts/2"'),
    "info": (b'"edge.info/1"', b'"edge.info/2"'),
    "health": (b'"edge.health/2"', b'"edge.health/3"'),
}
# Written by recorders and schools, not by nodes: passed over without a word.
NOT_OURS = re.compile(r"ack|cmd/[a-z-]+(/result)?")

Payload = Union[Counts, Status, Info, Health]


class Refused(Exception):
    """Not one of this kit's messages; the reason is one of a few texts, so that they can be counted."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of one node. node: site/room/node, as in its topic; kind: the topic's last word."""

    node: str
    kind: str
    payload: Payload


def read(topic: str, raw: bytes) -> Message | None:
    """Read a message; None where its topic is not for a watcher, or a retained message is taken back.
    Raises Refused, and nothing else."""
    found = TOPIC.fullmatch(topic)
    if found is None:
        raise Refused("topic of no node")
    node, kind = found.groups()
    if NOT_OURS.fullmatch(kind) or not raw:
        return None
    model = KINDS.get(kind)
    if model is None:
        raise Refused("unknown kind")
    if len(raw) > LARGEST_BYTES:
        raise Refused("too large")
    if kind in RENEWED:
        raw = raw.replace(*RENEWED[kind], 1)
    try:
        payload = parse(model, raw, strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise Refused(_reason(first["type"], first["loc"], raw, model)) from error
    if payload.node != node:
        raise Refused("another node's name")
    if b"\\u0000" in raw:
        raise Refused("holds a null character")  # which PostgreSQL cannot keep
    if isinstance(payload, Counts):
        try:
            span = (parse_rfc3339(payload.end) - parse_rfc3339(payload.start)).total_seconds()
        except ValueError as error:
            raise Refused("a time that no calendar has") from error
        if abs(span - payload.window_seconds) > 0.01:
            raise Refused("a window of another length than its times")
        if span <= 0:
            raise Refused("a window without length")
        if isinstance(payload.faces, str) and payload.faces != f"<{payload.min_group}":
            raise Refused("malformed counts")  # any text would be shown as a number of people
        if isinstance(payload.faces, Faces):
            if payload.faces.mean > payload.faces.max:
                raise Refused("a mean above the most")
            if _too_many(payload, payload.faces.max):
                raise Refused("more people counted than were in view")
        elif payload.counts is not None or payload.person_seconds is not None:
            # Databases and exports would hold what the page does not show.
            raise Refused("counts of a group that is hidden")
    return Message(node, kind, payload)


def _too_many(counts: Counts, most: int) -> bool:
    """Tell whether a reading counts more people, or more of their time, than were in view at once."""
    people, time = (sum((cells or {}).values()) for cells in (counts.counts, counts.person_seconds))
    # A window lasts up to a second longer where the clock was set within, and its time is rounded.
    return people > most or time > most * (counts.window_seconds + 1) + 1


def _reason(kind: str, place: tuple[int | str, ...], raw: bytes, model: type[Payload]) -> str:
    if kind == "json_invalid":
        return "no JSON"
    if place == ("schema",):
        try:
            given = str(json.loads(raw)["schema"])
        except (ValueError, TypeError, KeyError, RecursionError):
            return "no schema"
        own = model.model_fields["schema_"].default
        same = given.split("/")[0] == own.split("/")[0]
        return "another schema version" if same else "another schema"
    return f"malformed {model.__name__.lower()}"
