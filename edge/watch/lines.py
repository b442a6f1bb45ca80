"""A message as one line of text, for a terminal that scrolls and for scripts."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timezone, tzinfo

from edge.base.clock import parse_rfc3339
from edge.delivery.messages import Counts, Faces, Health, Status, as_dict, dumps
from edge.watch.messages import Message, Payload

SHORT = 200  # characters of one text of a node, such as the reason of a status
LONG = 2000  # of a whole line


def printable(text: object, most: int = LONG) -> str:
    """Replace what is no visible character, and cut what is long: a node must neither steer a terminal,
    nor turn its writing around, nor fill a screen.

    Args:
        most: characters; a cut is shown as an ellipsis, the last of them.
    """
    found = str(text)
    if len(found) > most:
        found = found[: most - 1] + "\u2026"
    if found.isprintable():
        return found
    return "".join(c if c.isprintable() else "?" for c in found)


def people(message: Counts) -> str:
    """Say how many were in view, or why that is not said."""
    if message.faces is None:
        return f"nothing seen ({message.quality.camera})"
    if isinstance(message.faces, str):
        return f"<{message.min_group} people: too few to count"
    whole = round(message.faces.mean)
    return f"{whole} {'person' if whole == 1 else 'people'}"


def mix(message: Counts) -> str:
    """List expressions by label, those that nobody shows left out; "" for a suppressed small count."""
    if not isinstance(message.faces, Faces) or message.counts is None:
        return ""
    return "  ".join(f"{label} {n}" for label, n in message.counts.items() if n) or "nobody"


def _health(payload: Health) -> Iterator[str]:
    """A health message's figures, without those that the node cannot measure."""
    if payload.frames_per_second is not None:
        yield f"{payload.frames_per_second} frames/s"
    detect = payload.stages.get("detect")
    yield f"detector {detect.p50_ms:g} ms" if detect else "detector not timed"
    if payload.temperature_celsius is not None:
        yield f"{payload.temperature_celsius} C"
    yield f"{payload.outbox_pending} waiting"


def describe(payload: Payload) -> str:
    """Describe one message in words."""
    if isinstance(payload, Counts):
        return f"{people(payload)}  {mix(payload)}".strip()
    if isinstance(payload, Status):
        return f"{payload.state} {payload.reason or ''}".strip()
    if isinstance(payload, Health):
        return ", ".join(_health(payload))
    return (
        f"{payload.model.backend} {payload.model.precision}, window {payload.window_seconds:g} s, "
        f"groups of {payload.privacy.min_group} or more"
    )


def clock(moment: str | None, zone: tzinfo) -> str:
    """Write a message's moment as time of day with its zone; UTC, as in messages, as Z."""
    if moment is None:
        return "--:--:--"
    if zone is timezone.utc or str(zone) == "UTC":
        return f"{moment[11:19]}Z"
    try:
        return parse_rfc3339(moment).astimezone(zone).strftime("%H:%M:%S %Z")
    except (ValueError, OverflowError):  # before the first or after the last year
        return f"{moment[11:19]}Z"


def line(message: Message, zone: tzinfo = timezone.utc) -> str:
    """Format time, node, kind and content."""
    m = message.payload
    when = clock(m.end if isinstance(m, Counts) else m.time, zone)
    return printable(f"{when} {message.node} {message.kind:<6} {describe(m)}")


def json_line(topic: str, message: Message) -> str:
    """Format one JSON object: topic and payload, as the node wrote it, without fields that this
    release does not know."""
    return dumps({"topic": topic, "payload": as_dict(message.payload)})
