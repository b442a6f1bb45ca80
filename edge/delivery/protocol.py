"""Which version of MQTT a broker is spoken to in: 5, or 3.1.1 where it knows nothing newer."""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from edge.base.files import write_atomically

log = logging.getLogger(__name__)

Version = Literal["5", "3.1.1"]
MEMORY_FILE = "mqtt-3.1.1.json"  # in the state folder: brokers that know nothing newer
# Long enough to ask in vain once a day at most; short enough that a broker which was updated, or
# whose link failed just when MQTT 5 was tried, soon gives its reasons again (3.1.1 knows none).
REMEMBER_SECONDS = 86400.0


class ProtocolChoice:
    """The versions to try. `auto` remembers in a file which brokers speak 3.1.1 alone: some are silent
    to MQTT 5, and waiting for their answer is to be paid once, not at each start."""

    def __init__(
        self,
        setting: Literal["auto", "5", "3.1.1"],
        broker: str,
        file: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """broker: host:port; file: None remembers in this process alone. A damaged file is ignored."""
        self._setting, self._broker, self._file, self._clock = setting, broker, file, clock
        self._older: dict[str, float] = {}  # host:port -> UTC seconds when 3.1.1 was found
        try:
            known = json.loads(file.read_bytes()) if file else {}
            self._older = {str(name): float(since) for name, since in known.items()}
        except (OSError, ArithmeticError, ValueError, TypeError, AttributeError, RecursionError):
            pass

    def beside(self, broker: str) -> ProtocolChoice:
        """Return the choice for another broker (host:port), which remembers in the same place."""
        other = copy.copy(self)
        other._broker = broker
        return other

    def _fresh(self, name: str) -> bool:
        return 0 <= self._clock() - self._older.get(name, float("-inf")) < REMEMBER_SECONDS

    def candidates(self) -> tuple[Version, ...]:
        """Return the versions to try, in this order."""
        if self._setting != "auto":
            return (self._setting,)
        return ("3.1.1", "5") if self._fresh(self._broker) else ("5", "3.1.1")

    def spoken(self, version: Version) -> None:
        """Note that the broker took a connection in this version."""
        if version == self.candidates()[0]:
            return
        for name in [name for name in self._older if not self._fresh(name)]:
            del self._older[name]
        self._older.pop(self._broker, None)
        if version == "3.1.1":
            self._older[self._broker] = self._clock()
            log.info("broker %s speaks MQTT 3.1.1, not 5", self._broker)
        if self._file is not None:
            try:
                write_atomically(self._file, json.dumps(self._older).encode())
            except OSError as error:
                log.info("%s is not written (%s): asked again next time", self._file, error)
