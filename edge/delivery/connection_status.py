"""How a connection to the broker stands, in a word and a reason."""

from __future__ import annotations

import enum
import socket
from dataclasses import dataclass


class ConnectionState(enum.Enum):
    """How a connection to the broker stands; the value is the word that people read."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    REFUSED = "refused"
    AWAY = "away"


@dataclass(frozen=True, slots=True)
class ConnectionStatus:
    """A state with its reason in words, "" for none. As text: "refused: Not authorized"."""

    state: ConnectionState = ConnectionState.CONNECTING
    detail: str = ""

    @property
    def connected(self) -> bool:
        return self.state is ConnectionState.CONNECTED

    def __str__(self) -> str:
        return f"{self.state.value}: {self.detail}" if self.detail else self.state.value


def connected(detail: str) -> ConnectionStatus:
    return ConnectionStatus(ConnectionState.CONNECTED, detail)


def refused(detail: str) -> ConnectionStatus:
    return ConnectionStatus(ConnectionState.REFUSED, detail)


def away(detail: str) -> ConnectionStatus:
    return ConnectionStatus(ConnectionState.AWAY, detail)


def together(failures: dict[str, ConnectionStatus]) -> ConnectionStatus:
    """Say why none of several brokers was to be had, by address."""
    if len(failures) == 1:
        return next(iter(failures.values()))
    detail = "; ".join(f"{url} {status}" for url, status in failures.items())
    if all(status.state is ConnectionState.REFUSED for status in failures.values()):
        return refused(detail)
    return away(detail)


def describe_connect_error(error: OSError) -> ConnectionStatus:
    """Say why no connection came about, where TLS has no part in it."""
    if isinstance(error, socket.gaierror):
        return away("its name is not known here")
    if isinstance(error, TimeoutError):
        return away("no answer")
    if isinstance(error, ConnectionRefusedError):
        return away("nothing listens there")
    return away(f"{error.strerror or error}")
