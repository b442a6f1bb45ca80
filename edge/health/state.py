"""How the node stands: its state, the cause, and the one line that tells systemd.

    degraded camera: away; broker away: no answer
    STATE    CAUSE   DETAIL       BROKER, while it is not connected

`systemctl status` shows the line to people, and edge-update judges a release on trial by what `parse`
makes of it. An updater of version 0.1.0 looks at the first two words and for "; broker ": keep those.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from edge.base.clock import rfc3339
from edge.delivery.connection_status import ConnectionState, ConnectionStatus
from edge.health.certificate import WARN_SECONDS

BROKER = "; broker "


class State(Enum):
    """The states of the `status` message."""

    STARTING = "starting"
    ONLINE = "online"
    DEGRADED = "degraded"
    STOPPED = "stopped"
    LOST = "lost"


class Cause(Enum):
    """Why a node stands as it does; the value opens the reason."""

    CLOSED = "closed:"
    CERTIFICATE = "certificate"
    OUTBOX = "outbox:"
    CAMERA = "camera:"
    PAUSED = "paused"
    REFUSED = "refused:"  # by the broker
    OTHER = ""  # an error in its own words, or a cause that this version does not know


# What a lesson's end, a cable or a teacher brings about, under any release.
EXTERNAL = {
    (State.ONLINE, Cause.CLOSED),
    (State.DEGRADED, Cause.CAMERA),
    (State.DEGRADED, Cause.PAUSED),
}


@dataclass(frozen=True, slots=True)
class Standing:
    """A state with its cause. detail: in words, on one line; broker: None while it is connected."""

    state: State
    cause: Cause | None = None
    detail: str = ""
    broker: ConnectionStatus | None = None

    def __post_init__(self) -> None:
        # What could be taken for the broker's part is none.
        detail = " ".join(self.detail.split()).replace(BROKER, ", broker ")
        object.__setattr__(self, "detail", detail)

    @property
    def reason(self) -> str:
        """Put cause and detail in words, as `status` has them; "" where there is no cause."""
        return "" if self.cause is None else f"{self.cause.value} {self.detail}".strip()

    @property
    def closed(self) -> bool:
        """Tell whether it looks at nothing because it is not time to."""
        return (self.state, self.cause) == (State.ONLINE, Cause.CLOSED)

    @property
    def healthy(self) -> bool:
        """Tell whether it counts and whoever listens hears of it: without its broker a node counts,
        and nobody could tell whether its release still reaches one."""
        return self.state is State.ONLINE and not self.closed and self.broker is None

    @property
    def external(self) -> bool:
        """Tell whether it would stand so under any release."""
        unheard = self.state is State.ONLINE and self.broker is not None
        return unheard or (self.state, self.cause) in EXTERNAL

    @property
    def line(self) -> str:
        """Write what `parse` reads."""
        away = "" if self.broker is None else f"{BROKER}{self.broker}"
        return f"{self.state.value} {self.reason}{away}"


def parse(line: str) -> Standing | None:
    """Read a Standing's line, of this version or another; None where it names no state."""
    words, _, away = line.partition(BROKER)
    broker = _broker(away) if away else None
    first, _, reason = words.partition(" ")
    if first not in {state.value for state in State}:
        return None
    known = {cause.value: cause for cause in Cause if cause.value}
    head, _, detail = reason.strip().partition(" ")
    if head in known:
        return Standing(State(first), known[head], detail, broker)
    return Standing(State(first), Cause.OTHER if head else None, reason, broker)


def _broker(words: str) -> ConnectionStatus:
    for state in ConnectionState:
        if words == state.value or words.startswith(f"{state.value}: "):
            return ConnectionStatus(state, words[len(state.value) + 2 :])
    return ConnectionStatus(ConnectionState.AWAY, words)


@dataclass(slots=True)
class Conditions:
    """What the node's loop sees, from which follows how the node stands.

    frames: due for analysis, those dropped too; unwritten: readings that no disk took; disk_full: the
    last one was such a reading; camera: "live", "file" or why no picture comes; paused: by command;
    closed: outside of privacy.hours; unmoved: faces in view are not counted, since they do not move."""

    camera: str
    frames: int = 0
    unwritten: int = 0
    disk_full: bool = False
    paused: bool = False
    closed: bool = False
    unmoved: bool = False

    def judge(
        self, broker: ConnectionStatus, certificate_ends: float | None, utc: float
    ) -> Standing:
        """Name the gravest cause. broker: the connection's state; certificate_ends, utc: seconds since
        1970, the first None where the node shows no certificate."""
        if self.disk_full:
            lost = f"{self.unwritten} readings could not be written"
            return Standing(State.DEGRADED, Cause.OUTBOX, lost)
        if self.camera not in ("live", "file"):
            return Standing(State.DEGRADED, Cause.CAMERA, self.camera)
        if self.paused:
            return Standing(State.DEGRADED, Cause.PAUSED, "by command")
        if self.closed:
            return Standing(State.ONLINE, Cause.CLOSED, "outside of privacy.hours")
        if broker.state is ConnectionState.REFUSED:
            return Standing(State.DEGRADED, Cause.REFUSED, broker.detail)
        if not self.frames:
            return Standing(State.STARTING)
        if certificate_ends is not None and certificate_ends - utc <= WARN_SECONDS:
            ends = f"ends on {rfc3339(certificate_ends)[:10]}"
            return Standing(State.ONLINE, Cause.CERTIFICATE, ends)
        return Standing(State.ONLINE)
