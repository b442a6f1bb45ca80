"""Ask nodes for their status where the broker keeps none for who comes later.

Some brokers retain nothing, or show what they retain on one member of a cluster alone. A page or table
that starts there hears readings of rooms of which it knows no status until they restart; and what a
room said while the connection was lost, it never hears. Such a node is asked by the command `report`,
and says status, info and health again, to everybody.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from edge.base.clock import utc_now
from edge.base.errors import BrokerError, EdgeError
from edge.settings import Broker
from edge.watch.command import Answer, Caller, Order, Outcome
from edge.watch.rooms import Rooms

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
AGAIN = timedelta(minutes=5)  # until the same node is asked once more
MOST_AT_ONCE = 100  # nodes: each answers with three messages
REFUSALS = 2  # in a row by the broker: a single one may be a connection that was lost by chance


class StatusRequests(threading.Thread):
    """Runs until `stop`, or until the broker refuses to pass anything on. Each time on a connection of
    its own, so that a broker which ends it for asking does not end the page's."""

    def __init__(
        self,
        settings: Broker,
        memory: Path | None,
        rooms: Rooms,
        stop: threading.Event,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        """memory: as of `Connector`."""
        super().__init__(name="status-requests", daemon=True)
        self._settings, self._memory, self._rooms = settings, memory, rooms
        self._stop_event, self._clock = stop, clock
        self._again: dict[str, datetime] = {}  # node -> when it may be asked once more
        self._refusals = 0
        self._told = False

    def run(self) -> None:
        while not self._stop_event.wait(LOOK_SECONDS) and self.turn():
            pass

    def turn(self) -> bool:
        """Ask the nodes that are due; return whether to go on."""
        now = self._clock()
        self._again = {node: at for node, at in self._again.items() if at > now}
        due = [node for node in self._rooms.unsaid(now) if node not in self._again][:MOST_AT_ONCE]
        if not due:
            return True
        self._again |= dict.fromkeys(due, now + AGAIN)
        try:
            caller = Caller(self._settings, self._memory)
        except EdgeError as error:
            log.debug("%s", error)  # the receiver says how the connection stands
            return True
        with caller:
            try:
                answers = caller.ask(due, Order("report"))
            except BrokerError as error:
                answers = [Answer(due[0], Outcome.UNANSWERED, str(error), taken=False)]
        self._refusals = 0 if any(answer.taken for answer in answers) else self._refusals + 1
        if all(answer.outcome is Outcome.UNANSWERED for answer in answers):
            self._tell(due, answers[0].text)
        return self._refusals < REFUSALS

    def _tell(self, nodes: Sequence[str], why: str) -> None:
        """Say once that asking brings nothing."""
        if self._told:
            return
        self._told = True
        more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
        log.warning(
            "the broker keeps no status of %s%s, and asked for it none answered (%s); until they say "
            "more they are shown as they were known last, or as unknown",
            *(nodes[0], more, why),
        )
