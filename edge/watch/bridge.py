"""mosquitto's bridge from a school's broker to a district's, and what the district lets it say.

What nodes say goes up, what answers and commands them comes down, each for the school's own sites. No
topic goes both ways, so that nothing can come back as a loop, and none of `$SYS` is among them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edge.base.errors import SettingsError, UsageError
from edge.base.strict_yaml import validate
from edge.delivery.members import Address
from edge.delivery.messages import PREFIX
from edge.settings import Settings

# Below a node's own place.
NODE_WRITES = ("status", "info", "counts", "health", "cmd/+/result")
NODE_READS = ("ack", "cmd/+")

CONFIGURATION = """\
# The school's bridge to the district's broker. Install beside edge.conf. What waits for the district
# lies in mosquitto's database (`persistence true`), within edge.conf's limits.
connection district
address {host}:{port}
bridge_cafile {folder}/district-ca.pem
bridge_certfile {folder}/{name}.pem
bridge_keyfile {folder}/{name}.key
# The district keeps the session, and in it commands and acknowledgements, by this name; without it
# mosquitto takes the machine's, which two schools may share. 3.1.1, since mosquitto's bridge asks an
# MQTT 5 broker to forget the session as soon as it is cut.
remote_clientid {name}
bridge_protocol_version mqttv311
cleansession false
start_type automatic
keepalive_interval 20
restart_timeout 2 30
# The district's access list has none of these: they would be $SYS topics, and unsubscribed ones.
notifications_local_only true
bridge_attempt_unsubscribe false
"""


@dataclass(frozen=True, slots=True)
class District:
    """A district's broker as one school sees it. sites: of the school's nodes, at least one."""

    address: Address
    sites: tuple[str, ...]

    @property
    def name(self) -> str:
        """The bridge's name: in its certificate, and in the district's access list."""
        return f"bridge-{self.sites[0]}"

    def files(self, folder: str) -> dict[str, str]:
        """Make the files' contents by name. folder: where the school's broker finds certificates."""
        return {"edge.district.conf": self._bridge(folder), "district.acl": self._access_list()}

    def _bridge(self, folder: str) -> str:
        host, port = self.address.peer
        head = CONFIGURATION.format(host=host, port=port, folder=folder, name=self.name)
        lines = []
        for site in self.sites:
            prefix = f"{PREFIX}/{site}/"
            lines += [f"topic +/+/{kind} out 1 {prefix} {prefix}" for kind in NODE_WRITES]
            lines += [f"topic +/+/{kind} in 1 {prefix} {prefix}" for kind in NODE_READS]
        return head + "\n".join(lines) + "\n"

    def _access_list(self) -> str:
        lines = ["# Append to the district broker's edge.acl, and restart it.", f"user {self.name}"]
        for site in self.sites:
            place = f"{PREFIX}/{site}/+/+"
            lines += [f"topic write {place}/{kind}" for kind in NODE_WRITES]
            lines += [f"topic read {place}/{kind}" for kind in NODE_READS]
        return "\n".join(lines) + "\n"


def read_district(url: str, sites: Sequence[str]) -> District:
    """Check `--district` and its `--site`s. Raises UsageError."""
    if not sites:
        raise UsageError("--district wants --site NAME, the first part of the nodes' names here")
    for site in sites:
        if not re.fullmatch(r"[a-z0-9-]+", site):
            raise UsageError(
                f"--site {site!r} must be a site's name, the first part of a node's: a-z, 0-9 and -"
            )
    try:
        settings = validate(Settings, {"broker": {"url": url}}, "options").broker
    except SettingsError:
        settings = None
    if settings is None or not settings.secure:
        raise UsageError("--district must be mqtts://host[:port], the district broker's address")
    return District(Address(settings.urls[0]), tuple(dict.fromkeys(sites)))
