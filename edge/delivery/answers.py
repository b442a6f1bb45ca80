"""Whether recorders still answer: a broker that takes readings says nothing of who stores them."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping

from edge.delivery.scheduler import RECORDER_SECONDS

log = logging.getLogger(__name__)

# By then everything was offered once more, and a recorder that is there has answered twice.
SILENT_SECONDS = 2 * RECORDER_SECONDS
# RabbitMQ 4.0.5 whose member was killed and came back lost what some clients had subscribed to, while
# their connections stood; on a new one they are heard. Later and later, for there may be no recorder,
# and at random up to twice as late: of a district's nodes not all come back in one moment.
RENEWAL_SECONDS, LONGEST_RENEWAL_SECONDS = 1.5 * RECORDER_SECONDS, 3600.0


class Answers:
    """Says once when no recorder answers any more, and once when one does again; and whether the
    connection is to be made anew meanwhile, since it may be this node that hears nothing."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        late: Callable[[], float] = lambda: random.uniform(1.0, 2.0),
    ) -> None:
        """late: draws by how much longer than it must a connection may last, as a factor."""
        self._clock, self._late = clock, late
        self._since: float | None = None  # a reading went out to which nobody answered yet
        self._told = False
        self._connected_at, self._renewals, self._factor = clock(), 0, late()

    def connected(self) -> None:
        """Note a new connection."""
        self._connected_at = self._clock()

    def sent(self) -> None:
        """Note that the broker took a reading."""
        if self._since is None:
            self._since = self._clock()

    def heard(self) -> None:
        """Note an `ack` that a recorder just said; one that the broker had kept tells of no one."""
        self._since, self._renewals = None, 0
        if self._told:
            log.info("a recorder answers again")
        self._told = False

    def deaf(self, expected: bool) -> bool:
        """Return, once a connection, whether it has brought no answer for so long that it is to be made
        anew. expected: as of `check`."""
        if not expected or self._since is None:
            return False
        pause = min(RENEWAL_SECONDS * 2 ** min(self._renewals, 9), LONGEST_RENEWAL_SECONDS)
        if self._clock() - max(self._since, self._connected_at) < pause * self._factor:
            return False
        self._renewals, self._factor = self._renewals + 1, self._late()
        return True

    def check(self, expected: bool) -> None:
        """expected: a recorder has spoken before; a school may have none."""
        if not expected or self._told or self._since is None:
            return
        if self._clock() - self._since >= SILENT_SECONDS:
            self._told = True
            log.warning(
                "no recorder has answered for %d s, the broker takes readings all the same; they are "
                "kept, and offered again", SILENT_SECONDS
            )  # fmt: skip


class Behind:
    """Says once of each recorder that the settings name when it lacks readings that are minutes old,
    and once when it has them."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell(self, behind: Mapping[str, int]) -> None:
        """behind: how many readings each lacks that is behind."""
        for name in sorted(behind.keys() - self._told):
            log.warning(
                "recorder %s of outbox.recorders lacks %d readings; they are kept for it within "
                "max_days and max_mib",
                *(name, behind[name]),
            )
        for name in sorted(self._told - behind.keys()):
            log.info("recorder %s has all readings again", name)
        self._told = set(behind)
