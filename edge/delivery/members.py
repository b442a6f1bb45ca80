"""The brokers that the settings name, such as the members of a cluster, and which of them is used."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from edge.delivery.connection_status import ConnectionStatus
from edge.delivery.protocol import ProtocolChoice

log = logging.getLogger(__name__)


class Address:
    """Host and port of mqtt:// or mqtts://, and the url itself."""

    def __init__(self, url: str) -> None:
        self.url, parts = url, urlsplit(url)
        self.secure = parts.scheme == "mqtts"
        self.host = parts.hostname or ""
        self.port = parts.port or (8883 if self.secure else 1883)

    @property
    def peer(self) -> tuple[str, int]:
        return self.host, self.port


class Members:
    """Stays with one broker until that is not to be had, and then goes to the next."""

    def __init__(
        self,
        urls: Sequence[str],
        protocol: Literal["auto", "5", "3.1.1"],
        memory: Path | None,
    ) -> None:
        """protocol, memory: as of `ProtocolChoice`."""
        choice = ProtocolChoice(protocol, "", memory)
        addresses = [Address(url) for url in urls]
        self._all = deque((a, choice.beside(f"{a.host}:{a.port}")) for a in addresses)
        self._told: dict[str, ConnectionStatus] = {}

    def __len__(self) -> int:
        return len(self._all)

    @property
    def address(self) -> Address:
        """Of the broker that is used, or tried next."""
        return self._all[0][0]

    @property
    def protocol(self) -> ProtocolChoice:
        """Of the same broker."""
        return self._all[0][1]

    def pass_over(self, address: Address) -> None:
        """Try the next one, unless another than this is used by now."""
        if address is self.address:
            self._all.rotate(-1)

    def tell(self, failures: dict[str, ConnectionStatus]) -> None:
        """Log why others than the one in use were passed over, by address; each reason once."""
        for url, status in failures.items():
            if self._told.get(url) != status:
                log.warning("broker %s address=%s, used is %s", status, url, self.address.url)
        self._told = failures
