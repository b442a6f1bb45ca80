"""What a recorder does beside storing: sums of quarters of an hour for days and weeks; and for a page,
what each room is used to, and which rooms are retired."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime, timedelta

from edge.base.clock import utc_now
from edge.watch.database import StoreError
from edge.watch.habits import OLDEST
from edge.watch.history import MOST, History
from edge.watch.retire import Retired
from edge.watch.rooms import Rooms

log = logging.getLogger(__name__)

RETIRED_SECONDS = 2.0
TURNS_BETWEEN_SUMS = 30  # of RETIRED_SECONDS


class Housekeeper(threading.Thread):
    """Runs until `stop`; a database that is away is the recorder's to report."""

    def __init__(
        self,
        address: str,
        rooms: Rooms,
        stop: threading.Event,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        super().__init__(name="housekeeping", daemon=True)
        self._history, self._retired = History(address), Retired(address)
        self._rooms, self._stop_event, self._clock = rooms, stop, clock
        self._learned = False
        self._turn = 0

    def run(self) -> None:
        while True:
            try:
                self.turn()
            except StoreError as error:
                log.debug("%s; tried again", error)
            if self._stop_event.wait(RETIRED_SECONDS):
                break
        self._history.close()
        self._retired.close()

    def turn(self) -> None:
        """Do what is due. Raises StoreError."""
        self._rooms.retired = self._retired.nodes()
        self._turn -= 1
        if self._turn < 0:
            more = self._sum_up()
            self._turn = 0 if more else TURNS_BETWEEN_SUMS

    def _sum_up(self) -> bool:
        """Returns whether there is more to sum up."""
        # A fortnight first: what a room is used to is wanted before old weeks are.
        pending, since = self._history.pending(self._clock()), self._clock() - OLDEST
        for at in pending:
            if at < since:
                self._learn(since)
            if self._stop_event.is_set():
                return False
            self._history.summarise(at)
        if len(pending) < MOST:
            self._learn(since)
        return len(pending) == MOST

    def _learn(self, since: datetime) -> None:
        if self._learned:
            return
        self._learned = True
        now = self._clock()
        for node, at in self._history.counted(since):
            with self._rooms.lock:
                self._rooms.habits.note(node, at + timedelta(seconds=1), now)
