"""What comes to a node: commands for its loop, and how far recorders stored its readings."""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Callable

from pydantic import ValidationError

from edge.delivery.messages import Ack, parse

log = logging.getLogger(__name__)

# Commands reach the node's loop, and what it says leaves, at these instants of the clock alone: what a
# picture took, which grows with every face, moves no message.
RELEASE_SECONDS = 0.5
COMMANDS = 20  # that wait for the node's loop; a flood pushes out its own oldest


class Inbox:
    """Reads what a node hears. For the publisher's thread, but for `commands`."""

    def __init__(self, node: str, stored: Callable[[Ack], None]) -> None:
        """stored: gets each ack of a recorder to `node`."""
        self._node, self._stored = node, stored
        self.commands: deque[tuple[str, bytes, bool]] = deque(maxlen=COMMANDS)
        self._arrived: deque[tuple[str, bytes, bool]] = deque(maxlen=COMMANDS)
        self._instant = -1
        self._strange_ack = False

    def take(self, kind: str, content: bytes, retained: bool) -> None:
        """Read one message. kind: its topic below the node's; retained: the broker had kept it."""
        if kind.startswith("cmd/"):
            name = kind.removeprefix("cmd/")
            # Its answer's topic holds the name, and so does the file of what was done.
            if re.fullmatch(r"[a-z-]{1,32}", name):
                self._arrived.append((name, content, retained))
        elif kind == "ack":
            self._take_ack(content)
        # Else nothing that was asked for: amqtt 0.12 sends what this node retains, too.

    def _take_ack(self, content: bytes) -> None:
        ack = _read_ack(content, self._node)
        if ack is not None:
            self._stored(ack)
            return
        if not self._strange_ack:
            log.warning("an ack that is none of ours, or malformed, was ignored")
        self._strange_ack = True

    def release(self) -> bool:
        """Tell whether an instant has come since the last call; then what arrived joins `commands`."""
        instant = int(time.time() / RELEASE_SECONDS)
        if instant == self._instant:
            return False
        self._instant = instant
        self.commands.extend(self._arrived)
        self._arrived.clear()
        return True


def _read_ack(content: bytes, node: str) -> Ack | None:
    """None for what is not an ack to this node."""
    try:
        ack = parse(Ack, content)
    except ValidationError:
        return None
    return ack if ack.node == node else None
